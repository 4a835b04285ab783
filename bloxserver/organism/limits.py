"""Warnings about execution limits that a definition always reaches, or that have no effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import no_targets
from bloxserver.blocks.stop import block as stop
from bloxserver.organism.join_plan import JoinPlan, components
from bloxserver.organism.model import Listener, Organism
from bloxserver.organism.problems import quoted
from bloxserver.organism.sections import ProblemReport

MAX_SHOWN = 6
"""The number of listeners of a cycle that a message lists."""


def check_limits(organism: Organism, report: ProblemReport) -> None:
    """Warn about cycles that only `max_iterations` ends, about more messages than it allows, unused timeouts and peers.

    These are warnings, because a trigger may start at another listener and an error may end a cycle.
    """
    _check_timeouts(organism, report)
    _check_stops(organism, report)
    numbers = {listener.name: number for number, listener in enumerate(organism.listeners)}
    peers = {listener.name: list(unconditional_peers(listener)) for listener in organism.listeners}
    endless = list(cycles(peers))
    for cycle in endless:
        message = f"the cycle {shown(cycle)} never ends; the execution fails at execution.max_iterations"
        hint = "add a condition to one of these peers: {to: name, when: condition}"
        report.warning(("listeners", numbers[cycle[0]], "peers"), "endless_circle", message, hint)
    entry = organism.entry().name
    limit = organism.execution.max_iterations
    if not endless and (messages := _messages(entry, peers, organism.joins)) > limit:
        message = f"an execution that starts at {quoted(entry)} handles {messages} messages, and the limit is {limit}"
        path = ("execution", "max_iterations")
        report.warning(path, "too_many_messages", message, f"set execution.max_iterations to {messages} or more")


def _check_timeouts(organism: Organism, report: ProblemReport) -> None:
    limit = organism.execution.timeout_seconds
    for number, listener in enumerate(organism.listeners):
        # An agent waits for its tools; this time counts towards its timeout, and not towards the execution's.
        waits = listener.block is agent or listener.block.awaits_call
        if not waits and (listener.timeout_seconds or 0) > limit:
            path = ("listeners", number, "timeout_seconds")
            message = f'"timeout_seconds" has no effect: the execution ends after {limit:g} seconds'
            report.warning(path, "unused_key", message, "reduce it, or increase execution.timeout_seconds")


def _check_stops(organism: Organism, report: ProblemReport) -> None:
    for number, listener in enumerate(organism.listeners):
        if listener.block is stop and any(peer.on == "answer" for peer in listener.peers):
            message = f"the peers of {quoted(listener.name)} receive nothing, because the execution ends there"
            hint = "remove them, or give them to the listener that sends to this one"
            report.warning(("listeners", number, "peers"), "unused_key", message, hint)


def unconditional_peers(listener: Listener) -> Iterator[str]:
    """Yield the listeners that receive every answer of this listener."""
    if listener.block.targets is no_targets and listener.block is not stop:
        yield from (peer.to for peer in listener.peers if peer.on == "answer" and peer.when is None)


def shown(cycle: Sequence[str]) -> str:
    """Return a cycle as text."""
    return " → ".join(cycle[:MAX_SHOWN]) + (" → …" if len(cycle) > MAX_SHOWN else f" → {cycle[0]}")


def cycles(peers: Mapping[str, list[str]]) -> Iterator[list[str]]:
    """Yield one cycle of each strongly connected group of listeners."""
    finished: set[str] = set()
    reported: set[str] = set()
    for start in peers:
        path: dict[str, Iterator[str]] = {} if start in finished else {start: iter(peers[start])}
        while path:
            name = next(reversed(path))
            other = next(path[name], None)
            if other is None:
                finished.add(name)
                del path[name]
            elif other in path:
                names = list(path)
                cycle = names[names.index(other) :]
                if reported.isdisjoint(cycle):
                    yield cycle
                reported.update(cycle)
            elif other not in finished:
                path[other] = iter(peers[other])


def _messages(entry: str, peers: Mapping[str, list[str]], plan: JoinPlan | None) -> int:
    """Return the minimum number of messages that one message to `entry` causes. There must be no cycle.

    A join handles one message. The messages that a join with `any` may make unnecessary are left out.
    """
    joins = {} if plan is None else plan.joins
    replaceable = 0
    for join in joins.values():
        replaceable |= join.replaceable
    counts = dict.fromkeys(peers, 0) | {entry: 1}
    total = 0
    for (name,) in components(peers):
        count = min(counts[name], 1) if name in joins else counts[name]
        for other in peers[name]:
            counts[other] += count
        if plan is None or not replaceable & plan.bits[name]:
            total += count
    return total
