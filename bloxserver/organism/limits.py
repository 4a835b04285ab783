"""Limits of an execution that its own definition makes it reach, or that never apply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import no_targets
from bloxserver.organism.model import Listener, Organism
from bloxserver.organism.problems import quoted
from bloxserver.organism.sections import Findings

MAX_SHOWN = 6
"""Listeners of a circle that a message names."""


def warn_of_limits(organism: Organism, findings: Findings) -> None:
    """Warn of circles that only `max_iterations` ends, of more messages than it allows, and of unused timeouts.

    They are warnings: a trigger may begin elsewhere, and an error may end a circle.
    """
    _warn_of_timeouts(organism, findings)
    numbers = {listener.name: number for number, listener in enumerate(organism.listeners)}
    always = {listener.name: list(_always(listener)) for listener in organism.listeners}
    circles = list(_circles(always))
    for circle in circles:
        shown = " → ".join(circle[:MAX_SHOWN]) + (" → …" if len(circle) > MAX_SHOWN else f" → {circle[0]}")
        message = f"every message goes round in a circle: {shown}; it ends at execution.max_iterations, as an error"
        hint = "put a condition on one of these peers: {to: name, when: condition}"
        findings.warning(("listeners", numbers[circle[0]], "peers"), "endless_circle", message, hint)
    entry = organism.entry().name
    most = organism.execution.max_iterations
    if not circles and (messages := _messages(entry, always)) > most:
        message = f"an execution that begins with {quoted(entry)} handles {messages} messages; {most} are allowed"
        path = ("execution", "max_iterations")
        findings.warning(path, "too_many_messages", message, f"set execution.max_iterations to {messages} or more")


def _warn_of_timeouts(organism: Organism, findings: Findings) -> None:
    most = organism.execution.timeout_seconds
    for number, listener in enumerate(organism.listeners):
        # The time that an agent waits for its tools counts for its listener alone.
        if listener.block is not agent and (listener.timeout_seconds or 0) > most:
            path = ("listeners", number, "timeout_seconds")
            message = f'"timeout_seconds" has no effect: the execution ends after {most:g} seconds'
            findings.warning(path, "unused_key", message, "make it shorter, or raise execution.timeout_seconds")


def _always(listener: Listener) -> Iterator[str]:
    """The listeners that get each of its answers."""
    if listener.block.targets is no_targets:
        yield from (peer.to for peer in listener.peers if peer.on == "answer" and peer.when is None)


def _circles(always: Mapping[str, list[str]]) -> Iterator[list[str]]:
    """One circle for each group of listeners that are in circles with each other."""
    finished: set[str] = set()
    told: set[str] = set()
    for start in always:
        path: dict[str, Iterator[str]] = {} if start in finished else {start: iter(always[start])}
        while path:
            name = next(reversed(path))
            other = next(path[name], None)
            if other is None:
                finished.add(name)
                del path[name]
            elif other in path:
                names = list(path)
                circle = names[names.index(other) :]
                if told.isdisjoint(circle):
                    yield circle
                told.update(circle)
            elif other not in finished:
                path[other] = iter(always[other])


def _messages(entry: str, always: Mapping[str, list[str]]) -> int:
    """How many messages come of one to `entry`, at the least. There are no circles."""
    counts: dict[str, int] = {}
    waiting = [entry]
    while waiting:
        name = waiting[-1]
        missing = [other for other in always[name] if other not in counts]
        if missing:
            waiting.extend(missing)
            continue
        counts[name] = 1 + sum(counts[other] for other in always[name])
        waiting.pop()
    return counts[entry]
