"""The listeners that a canvas shows. Whatever is on it is read or told of: nothing raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from bloxserver.blocks.base import no_targets
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.organism.canvas import (
    ANSWER,
    BRANCH,
    CASE,
    CONFIG,
    ERROR,
    OTHERWISE,
    TOOL,
    config_key,
    is_agent,
    ways_from,
)
from bloxserver.organism.problems import Problem, quoted

LISTENER_TYPES = (None, "agent", "block", "listener", "default", "input", "output")
"""Of nodes; the last three are React Flow's own. One of any other type counts where it has a handler or a prompt."""


@dataclass
class Drawn:
    """A listener as it is drawn: the keys that it would have in a definition, and the ids of its peers' edges."""

    node: str
    values: dict[str, JsonValue]
    edges: list[str] = field(default_factory=list)
    handles: set[str] = field(default_factory=set)
    """Those of the handles of a branch that have an edge."""

    def add_peer(self, edge: str, peer: JsonValue) -> None:
        peers = self.values.setdefault("peers", [])
        if isinstance(peers, list):
            peers.append(peer)
            self.edges.append(edge)


@dataclass
class Drawing:
    """What a canvas shows. The problems have no place yet; their paths say where on the canvas they are."""

    listeners: list[Drawn]
    problems: list[Problem]


def read_canvas(canvas: Mapping[str, Any], registry: BlockRegistry) -> Drawing:
    reader = _Reader(registry)
    for node in _members(canvas, "nodes"):
        reader.read_node(node)
    for edge in _members(canvas, "edges"):
        reader.read_edge(edge)
    reader.tell_of_cases()
    return Drawing(list(reader.drawn.values()), reader.problems)


def _members(canvas: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    members = canvas.get(name) if isinstance(canvas, Mapping) else None
    yield from (member for member in (members if isinstance(members, list) else []) if isinstance(member, dict))


def _data(member: Mapping[str, Any]) -> dict[str, Any]:
    data = member.get("data")
    return data if isinstance(data, dict) else {}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


class _Reader:
    def __init__(self, registry: BlockRegistry) -> None:
        self._registry = registry
        self._ignored: set[str] = set()
        self.drawn: dict[str, Drawn] = {}
        self.problems: list[Problem] = []

    def _error(self, kind: str, member: str, code: str, message: str, hint: str) -> None:
        self.problems.append(Problem(1, 1, code, message, hint, path=(kind, member)))

    def _warn(self, kind: str, member: str, code: str, message: str, hint: str) -> None:
        self.problems.append(Problem(1, 1, code, message, hint, severity="warning", path=(kind, member)))

    def read_node(self, node: dict[str, Any]) -> None:
        name, data = str(node.get("id")), _data(node)
        if name in self.drawn or name in self._ignored:
            hint = "give each node an id of its own; the first one counts"
            self._error("nodes", name, "duplicate_node", f"two nodes have the id {quoted(name)}", hint)
        elif node.get("type") in LISTENER_TYPES or _is_text(data.get("handler")) or _is_text(data.get("prompt")):
            self.drawn[name] = self._listener(name, data)
        else:
            self._ignored.add(name)
            message = f"the node {quoted(name)} of the type {quoted(str(node.get('type')))} is no listener"
            hint = "it stays on the canvas; a listener is of the type block or agent, or has a handler or a prompt"
            self._warn("nodes", name, "not_a_listener", message, hint)

    def _listener(self, node: str, data: dict[str, Any]) -> Drawn:
        if data.get("peers"):
            message = f"the peers in the data of {quoted(node)} do not count: its edges do"
            self._warn("nodes", node, "peers_are_edges", message, "draw edges, and take peers out of the data")
        values = {key: value for key, value in data.items() if key not in ("label", "peers") and value is not None}
        name = values.get("name", "")
        return Drawn(node, {"name": node if isinstance(name, str) and not name.strip() else name} | values)

    def read_edge(self, edge: dict[str, Any]) -> None:
        name, ends = str(edge.get("id")), [str(edge.get("source")), str(edge.get("target"))]
        if not self._ignored.isdisjoint(ends):
            return
        for end in ends:
            if end not in self.drawn:
                message = f"the edge {quoted(name)} leads from or to {quoted(end)}, which is not there"
                self._error("edges", name, "dangling_edge", message, "connect it with a node, or remove it")
                return
        source, target = (self.drawn[end] for end in ends)
        if not self._is_of_config(source, name, edge.get("sourceHandle"), target.values["name"]):
            source.add_peer(name, self._peer(source, name, edge, target.values["name"]))

    def _is_of_config(self, source: Drawn, edge: str, handle: object, target: JsonValue) -> bool:
        """Whether the edge stands for what the source's config says; for a branch it goes into the config."""
        handler = source.values.get("handler")
        block = self._registry.find(handler) if isinstance(handler, str) else None
        if block is None or not isinstance(handle, str):
            return False
        if block.name != BRANCH:
            return handle == CONFIG and block.targets is not no_targets
        if not handle.startswith(CASE) and handle != OTHERWISE:
            return False
        source.handles.add(handle)
        if not _set_target(source.values, handle, target):
            message = f"{quoted(source.node)} has no {quoted(handle)} from which the edge {quoted(edge)} could lead"
            self._error("edges", edge, "unknown_case", message, "add the case to its config, or remove the edge")
        return True

    def _peer(self, source: Drawn, edge_id: str, edge: Mapping[str, Any], to: JsonValue) -> JsonValue:
        """The peer that the edge stands for, as it is written."""
        handle, data = edge.get("sourceHandle"), _data(edge)
        on, when = data.get("on"), data.get("when")
        if handle in (ANSWER, ERROR, TOOL):
            if on not in (None, handle):
                message = f"the edge {quoted(edge_id)} begins at {quoted(str(handle))}, but its data say something else"
                self._warn("edges", edge_id, "edge_contradiction", message, "make both the same; its beginning counts")
            on = handle
        if on == TOOL or (on == ANSWER and not is_agent(source.values)):
            on = None
        peer = {"to": to}
        if on is not None:
            peer["on"] = on
        if when is not None and when != "":
            peer["when"] = when
        return to if len(peer) == 1 else peer

    def tell_of_cases(self) -> None:
        """Who is named by a branch's config alone was perhaps cut off on the canvas."""
        names = {listener.values["name"] for listener in self.drawn.values() if _is_text(listener.values["name"])}
        for listener in self.drawn.values():
            for way in ways_from(listener.values, self._registry):
                branches = way.handle == OTHERWISE or way.handle.startswith(CASE)
                if branches and way.handle not in listener.handles and way.to in names:
                    message = (
                        f"{quoted(listener.node)} has no edge at {quoted(way.handle)} but its config names {way.to}"
                    )
                    hint = "draw the edge, or take the name out of its config"
                    self._warn("nodes", listener.node, "undrawn_case", message, hint)


def _set_target(values: dict[str, JsonValue], handle: str, target: JsonValue) -> bool:
    """Put the target into the config of a branch; False where it has no such case."""
    key = config_key(values)
    config = values.get(key)
    if not isinstance(config, dict):
        return False
    if handle == OTHERWISE:
        values[key] = config | {OTHERWISE: target}
        return True
    cases, number = config.get("cases"), handle.removeprefix(CASE)
    if not isinstance(cases, list) or not (number.isascii() and number.isdigit() and len(number) < 6):
        return False
    index = int(number)
    case = cases[index] if index < len(cases) else None
    if not isinstance(case, dict):
        return False
    values[key] = config | {"cases": [*cases[:index], case | {"to": target}, *cases[index + 1 :]]}
    return True
