"""Read the listeners of a canvas. Every invalid part becomes a problem; nothing raises."""

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
    edges_from,
    is_agent,
)
from bloxserver.organism.problems import Problem, quoted

LISTENER_TYPES = (None, "agent", "block", "listener", "default", "input", "output")
"""Types of nodes that are listeners; the last three are React Flow's built-in types. A node of another type is a
listener if it has a handler or a prompt.
"""


@dataclass
class CanvasListener:
    """A listener on a canvas: its keys in a definition, and the ids of the edges to its peers."""

    node: str
    values: dict[str, JsonValue]
    edges: list[str] = field(default_factory=list)
    handles: set[str] = field(default_factory=set)
    """The handles of a branch that have an edge."""

    def add_peer(self, edge: str, peer: JsonValue) -> None:
        peers = self.values.setdefault("peers", [])
        if isinstance(peers, list):
            peers.append(peer)
            self.edges.append(edge)


@dataclass
class CanvasReading:
    """The content of a canvas. The problems have no line and column yet; their paths are canvas paths."""

    listeners: list[CanvasListener]
    problems: list[Problem]


def read_canvas(canvas: Mapping[str, Any], registry: BlockRegistry) -> CanvasReading:
    reader = _Reader(registry)
    for node in _members(canvas, "nodes"):
        reader.read_node(node)
    for edge in _members(canvas, "edges"):
        reader.read_edge(edge)
    reader.report_cases_without_edge()
    return CanvasReading(list(reader.listeners.values()), reader.problems)


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
        self.listeners: dict[str, CanvasListener] = {}
        self.problems: list[Problem] = []

    def _error(self, kind: str, member: str, code: str, message: str, hint: str) -> None:
        self.problems.append(Problem(1, 1, code, message, hint, path=(kind, member)))

    def _warn(self, kind: str, member: str, code: str, message: str, hint: str) -> None:
        self.problems.append(Problem(1, 1, code, message, hint, severity="warning", path=(kind, member)))

    def read_node(self, node: dict[str, Any]) -> None:
        name, data = str(node.get("id")), _data(node)
        if name in self.listeners or name in self._ignored:
            hint = "give each node a unique id; the first node with an id is used"
            self._error("nodes", name, "duplicate_node", f"two nodes have the id {quoted(name)}", hint)
        elif node.get("type") in LISTENER_TYPES or _is_text(data.get("handler")) or _is_text(data.get("prompt")):
            self.listeners[name] = self._listener(name, data)
        else:
            self._ignored.add(name)
            message = f"the node {quoted(name)} of type {quoted(str(node.get('type')))} is not a listener"
            hint = "it stays on the canvas only; a listener has the type block or agent, a handler or a prompt"
            self._warn("nodes", name, "not_a_listener", message, hint)

    def _listener(self, node: str, data: dict[str, Any]) -> CanvasListener:
        if data.get("peers"):
            message = f"the peers in the data of {quoted(node)} are ignored; the peers are its edges"
            self._warn("nodes", node, "peers_are_edges", message, "draw edges, and remove peers from the data")
        values = {key: value for key, value in data.items() if key not in ("label", "peers") and value is not None}
        name = values.get("name", "")
        return CanvasListener(node, {"name": node if isinstance(name, str) and not name.strip() else name} | values)

    def read_edge(self, edge: dict[str, Any]) -> None:
        name, ends = str(edge.get("id")), [str(edge.get("source")), str(edge.get("target"))]
        if not self._ignored.isdisjoint(ends):
            return
        for end in ends:
            if end not in self.listeners:
                message = f"the edge {quoted(name)} refers to {quoted(end)}, which does not exist"
                self._error("edges", name, "dangling_edge", message, "connect it to a node, or remove it")
                return
        source, target = (self.listeners[end] for end in ends)
        if not self._is_of_config(source, name, edge.get("sourceHandle"), target.values["name"]):
            source.add_peer(name, self._peer(source, name, edge, target.values["name"]))

    def _is_of_config(self, source: CanvasListener, edge: str, handle: object, target: JsonValue) -> bool:
        """Whether the source's config defines the edge. The target of a branch's edge is written to its config."""
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
            message = f"the edge {quoted(edge)} begins at {quoted(handle)}, which {quoted(source.node)} does not have"
            self._error("edges", edge, "unknown_case", message, "add the case to the config, or remove the edge")
        return True

    def _peer(self, source: CanvasListener, edge_id: str, edge: Mapping[str, Any], to: JsonValue) -> JsonValue:
        """Return the peer that the edge represents, as a definition has it."""
        handle, data = edge.get("sourceHandle"), _data(edge)
        on, when = data.get("on"), data.get("when")
        if handle in (ANSWER, ERROR, TOOL):
            if on not in (None, handle):
                message = f"the edge {quoted(edge_id)} begins at {quoted(str(handle))}, but its data has another `on`"
                self._warn("edges", edge_id, "edge_contradiction", message, "make both equal; the handle is used")
            on = handle
        if on == TOOL or (on == ANSWER and not is_agent(source.values)):
            on = None
        peer = {"to": to}
        if on is not None:
            peer["on"] = on
        if when is not None and when != "":
            peer["when"] = when
        return to if len(peer) == 1 else peer

    def report_cases_without_edge(self) -> None:
        """Warn about each target of a branch that only the config has: the edge may have been deleted."""
        names = {listener.values["name"] for listener in self.listeners.values() if _is_text(listener.values["name"])}
        for listener in self.listeners.values():
            for edge in edges_from(listener.values, self._registry):
                branches = edge.handle == OTHERWISE or edge.handle.startswith(CASE)
                if branches and edge.handle not in listener.handles and edge.to in names:
                    message = (
                        f"{quoted(listener.node)} has no edge at {quoted(edge.handle)}, but its config names {edge.to}"
                    )
                    hint = "draw the edge, or remove the name from the config"
                    self._warn("nodes", listener.node, "undrawn_case", message, hint)


def _set_target(values: dict[str, JsonValue], handle: str, target: JsonValue) -> bool:
    """Write the target to the config of a branch. Returns False if it has no such case."""
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
