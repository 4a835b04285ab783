"""Convert a definition to a canvas: a node for each listener, an edge for each route of a message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import no_targets
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.organism.layout import positions
from bloxserver.organism.parse import check
from bloxserver.organism.problems import OrganismError, Problem
from bloxserver.organism.yaml_loader import load

Canvas = dict[str, Any]
"""`nodes`, `edges` and `viewport`, as React Flow has them."""

AGENT, BLOCK = "agent", "block"
ANSWER, ERROR, TOOL = "answer", "error", "tool"
CASE, OTHERWISE = "case:", "otherwise"
CONFIG = "config"
"""The handle of edges that a block derives from its config in its own edge."""
BRANCH = "branch"


class ListenerEdge(NamedTuple):
    """An edge to another listener, with the handle where it begins and its condition."""

    to: str
    handle: str
    when: JsonValue = None


def yaml_to_canvas(text: str, registry: BlockRegistry) -> tuple[Canvas, list[Problem]]:
    """Return the canvas of a definition, as far as the definition can be read, and all its problems."""
    try:
        document = load(text)
    except OrganismError as error:
        return build_canvas([], registry), error.problems
    listeners = document.value.get("listeners")
    drawn = [item for item in listeners if isinstance(item, dict)] if isinstance(listeners, list) else []
    return build_canvas(drawn, registry), check(text, registry)


def build_canvas(listeners: Sequence[Mapping[str, JsonValue]], registry: BlockRegistry) -> Canvas:
    """Return the canvas of these listeners. An edge to a listener that does not exist is left out."""
    ids = _ids(listeners)
    by_name: dict[str, int] = {}
    for index, listener in enumerate(listeners):
        by_name.setdefault(str(listener.get("name")), index)
    links = [
        (index, by_name[edge.to], edge)
        for index, listener in enumerate(listeners)
        for edge in edges_from(listener, registry)
        if edge.to in by_name
    ]
    places = positions(len(listeners), [(source, target) for source, target, _ in links])
    nodes = [_node(listener, ids[index], places[index]) for index, listener in enumerate(listeners)]
    edges: dict[str, dict[str, Any]] = {}
    for source, target, link in links:
        edge = _edge(ids[source], ids[target], link, default=TOOL if is_agent(listeners[source]) else ANSWER)
        edge["id"] = _free(edge["id"], edges)
        edges[edge["id"]] = edge
    return {"nodes": nodes, "edges": list(edges.values()), "viewport": {"x": 0, "y": 0, "zoom": 1}}


def is_agent(listener: Mapping[str, JsonValue]) -> bool:
    return listener.get("handler") is None and listener.get("prompt") is not None


def config_key(listener: Mapping[str, JsonValue]) -> str:
    return "config" if listener.get("config") is not None else "tool_config"


def edges_from(listener: Mapping[str, JsonValue], registry: BlockRegistry) -> Iterator[ListenerEdge]:
    """Yield the edges of a listener as it is written. Invalid parts are skipped."""
    peers = listener.get("peers")
    plain = TOOL if is_agent(listener) else ANSWER
    for peer in peers if isinstance(peers, list) else []:
        if isinstance(peer, str):
            yield ListenerEdge(peer, plain)
        elif isinstance(peer, dict) and isinstance(to := peer.get("to"), str):
            on = peer.get("on")
            if on in (None, ANSWER, ERROR):
                yield ListenerEdge(to, plain if on is None else str(on), peer.get("when"))
    yield from _edges_from_config(listener, registry)


def _edges_from_config(listener: Mapping[str, JsonValue], registry: BlockRegistry) -> Iterator[ListenerEdge]:
    """Yield an edge for each listener that a block's config names."""
    handler, config = listener.get("handler"), listener.get(config_key(listener))
    block = registry.find(handler) if isinstance(handler, str) else None
    if block is None or not isinstance(config, dict):
        return
    if block.name == BRANCH:
        cases = config.get("cases")
        for number, case in enumerate(cases if isinstance(cases, list) else []):
            if isinstance(case, dict) and isinstance(to := case.get("to"), str):
                yield ListenerEdge(to, f"{CASE}{number}")
        if isinstance(otherwise := config.get("otherwise"), str):
            yield ListenerEdge(otherwise, OTHERWISE)
    elif block.targets is not no_targets:
        try:
            yield from (ListenerEdge(name, CONFIG) for name in block.targets(block.config.model_validate(config)))
        except ValidationError:
            return


def _ids(listeners: Sequence[Mapping[str, JsonValue]]) -> list[str]:
    """Return an id for each listener: its name if that is unique."""
    ids: dict[str, None] = {}
    for number, listener in enumerate(listeners, start=1):
        name = listener.get("name")
        ids[_free(name if isinstance(name, str) and name.strip() else f"listener-{number}", ids)] = None
    return list(ids)


def _free(wanted: str, taken: Mapping[str, object]) -> str:
    name, number = wanted, len(taken)
    while name in taken:
        number += 1
        name = f"{wanted}~{number}"
    return name


def _node(listener: Mapping[str, JsonValue], node_id: str, place: tuple[int, int]) -> dict[str, Any]:
    data = {key: value for key, value in listener.items() if key != "peers"}
    name = listener.get("name")
    return {
        "id": node_id,
        "type": AGENT if is_agent(listener) else BLOCK,
        "position": {"x": place[0], "y": place[1]},
        "data": {"label": name if isinstance(name, str) else node_id} | data,
    }


def _edge(source: str, target: str, edge: ListenerEdge, *, default: str) -> dict[str, Any]:
    suffix = "" if edge.handle == default else f":{edge.handle}"
    return {
        "id": f"{source}->{target}{suffix}",
        "source": source,
        "target": target,
        "sourceHandle": edge.handle,
        "targetHandle": None,
        "data": {"when": edge.when, "on": edge.handle if edge.handle in (ANSWER, ERROR) else None},
    }
