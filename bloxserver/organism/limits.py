"""Warnings about execution limits that a definition always reaches, or that have no effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import no_targets
from bloxserver.organism.model import Listener, Organism
from bloxserver.organism.problems import quoted
from bloxserver.organism.sections import ProblemReport

MAX_SHOWN = 6
"""The number of listeners of a cycle that a message lists."""


def check_limits(organism: Organism, report: ProblemReport) -> None:
    """Warn about cycles that only `max_iterations` ends, about more messages than it allows, and unused timeouts.

    These are warnings, because a trigger may start at another listener and an error may end a cycle.
    """
    _check_timeouts(organism, report)
    numbers = {listener.name: number for number, listener in enumerate(organism.listeners)}
    peers = {listener.name: list(unconditional_peers(listener)) for listener in organism.listeners}
    cycles = list(_cycles(peers))
    for cycle in cycles:
        shown = " → ".join(cycle[:MAX_SHOWN]) + (" → …" if len(cycle) > MAX_SHOWN else f" → {cycle[0]}")
        message = f"the cycle {shown} never ends; the execution fails at execution.max_iterations"
        hint = "add a condition to one of these peers: {to: name, when: condition}"
        report.warning(("listeners", numbers[cycle[0]], "peers"), "endless_circle", message, hint)
    entry = organism.entry().name
    limit = organism.execution.max_iterations
    if not cycles and (messages := _messages(entry, peers)) > limit:
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


def unconditional_peers(listener: Listener) -> Iterator[str]:
    """Yield the listeners that receive every answer of this listener."""
    if listener.block.targets is no_targets:
        yield from (peer.to for peer in listener.peers if peer.on == "answer" and peer.when is None)


def _cycles(peers: Mapping[str, list[str]]) -> Iterator[list[str]]:
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


def _messages(entry: str, peers: Mapping[str, list[str]]) -> int:
    """Return the minimum number of messages that one message to `entry` causes. There must be no cycle."""
    counts: dict[str, int] = {}
    waiting = [entry]
    while waiting:
        name = waiting[-1]
        missing = [other for other in peers[name] if other not in counts]
        if missing:
            waiting.extend(missing)
            continue
        counts[name] = 1 + sum(counts[other] for other in peers[name])
        waiting.pop()
    return counts[entry]
