"""The joins of an organism, with what a run needs to decide when each of them has its message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bloxserver.organism.model import Listener

ALL, ANY = "all", "any"
MODES = (ALL, ANY)


@dataclass(frozen=True, slots=True)
class Join:
    """A listener that handles one message per execution. Sets of listeners are the bits of an integer."""

    mode: str
    bit: int
    """Of the listener itself."""
    upstream: int
    """The listeners from which a message can lead to the join."""
    replaceable: int
    """With `any`: the listeners upstream whose answers lead only to the join."""


@dataclass(frozen=True, slots=True)
class JoinPlan:
    """All joins of an organism by name. `bits` has the bit of each listener."""

    bits: Mapping[str, int]
    joins: Mapping[str, Join]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON value, with sets as hexadecimal numbers."""
        return {
            "listeners": [*self.bits],
            "joins": {
                name: [join.mode, f"{join.upstream:x}", f"{join.replaceable:x}"] for name, join in self.joins.items()
            },
        }

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> JoinPlan:
        bits = _bits(value["listeners"])
        joins = {
            name: Join(mode, bits[name], int(upstream, 16), int(replaceable, 16))
            for name, (mode, upstream, replaceable) in value["joins"].items()
        }
        return cls(bits, joins)


def plan_joins(listeners: Sequence[Listener]) -> JoinPlan | None:
    """Return the joins of these listeners; None if there are none, so that other organisms have no cost."""
    if all(listener.join is None for listener in listeners):
        return None
    bits = _bits(listener.name for listener in listeners)
    edges = {listener.name: [*dict.fromkeys(peer.to for peer in listener.peers)] for listener in listeners}
    upstream, paths = _upstream(edges, bits), _AnswerPaths(listeners, bits)
    joins = {
        listener.name: Join(
            listener.join,
            bits[listener.name],
            upstream[listener.name],
            paths.leading_only_to(listener.name, upstream[listener.name]) if listener.join == ANY else 0,
        )
        for listener in listeners
        if listener.join is not None
    }
    return JoinPlan(bits, joins)


def _bits(names: Iterable[str]) -> dict[str, int]:
    return {name: 1 << number for number, name in enumerate(names)}


def components(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the strongly connected components of a graph. A component comes before those that it leads to."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []
    placed: set[str] = set()
    for start in edges:
        path = [] if start in numbers else [(start, iter(edges[start]))]
        while path:
            name, others = path[-1]
            if name not in numbers:
                numbers[name] = lowest[name] = len(numbers)
                stack.append(name)
            other = next(others, None)
            if other is not None:
                if other not in numbers:
                    path.append((other, iter(edges[other])))
                elif other not in placed:
                    lowest[name] = min(lowest[name], numbers[other])
                continue
            path.pop()
            if path:
                lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[name])
            if lowest[name] == numbers[name]:
                component = [name]
                while (other := stack.pop()) != name:
                    component.append(other)
                found.append(component)
                placed.update(component)
    return found[::-1]


def repeated_listeners(listeners: Sequence[Listener]) -> frozenset[str]:
    """Return the listeners that may answer several times in an execution: those in or after a cycle, or two senders."""
    edges = {listener.name: [*dict.fromkeys(peer.to for peer in listener.peers)] for listener in listeners}
    joins = {listener.name for listener in listeners if listener.join is not None}
    senders: dict[str, list[str]] = {name: [] for name in edges}
    for name, peers in edges.items():
        for peer in peers:
            senders[peer].append(name)
    repeated: set[str] = set()
    for component in components(edges):
        name = component[0]
        if len(component) > 1 or name in edges[name]:
            repeated.update(component)
        elif name not in joins and (len(senders[name]) > 1 or not repeated.isdisjoint(senders[name])):
            repeated.add(name)
    return frozenset(repeated)


def _upstream(edges: Mapping[str, Sequence[str]], bits: Mapping[str, int]) -> dict[str, int]:
    """Return the listeners from which each listener can be reached. One in a cycle can be reached from itself."""
    upstream = dict.fromkeys(edges, 0)
    for component in components(edges):
        own = 0
        for name in component:
            own |= bits[name]
        before = 0
        for name in component:
            before |= upstream[name]
        if len(component) > 1 or component[0] in edges[component[0]]:
            before |= own
        for name in component:
            upstream[name] = before
            for other in edges[name]:
                upstream[other] |= before | own
    return upstream


class _AnswerPaths:
    """The edges that answers take.

    Errors do not count: the step of a listener is cancelled because its answer is not needed, and has no error then.
    """

    def __init__(self, listeners: Sequence[Listener], bits: Mapping[str, int]) -> None:
        self._senders: dict[str, list[int]] = {name: [] for name in bits}
        self._bits = bits
        self._answering = 0
        for listener in listeners:
            for name in dict.fromkeys(peer.to for peer in listener.peers if peer.on == "answer"):
                self._senders[name].append(bits[listener.name])
                self._answering |= bits[listener.name]
        self._names = {bit: name for name, bit in bits.items()}

    def leading_only_to(self, join: str, upstream: int) -> int:
        """Return the listeners upstream of a join from which every path of answers leads to it."""
        found = upstream & self._answering
        others = [name for name, bit in self._bits.items() if not found & bit and name != join]
        while others:
            for sender in self._senders[others.pop()]:
                if found & sender:
                    found ^= sender
                    others.append(self._names[sender])
        return found
