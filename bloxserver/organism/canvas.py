"""A definition as a canvas: a node for each listener, an edge for each way that a message may take."""

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
"""The handle of edges that a block's config makes, of which only the block knows how."""
BRANCH = "branch"


class Way(NamedTuple):
    """A way to another listener: from which of the node's handles, and under which condition."""

    to: str
    handle: str
    when: JsonValue = None


def canvas_of(text: str, registry: BlockRegistry) -> tuple[Canvas, list[Problem]]:
    """The canvas that shows a definition, as far as it can be read, and everything that is wrong with it."""
    try:
        document = load(text)
    except OrganismError as error:
        return draw([], registry), error.problems
    listeners = document.value.get("listeners")
    drawn = [item for item in listeners if isinstance(item, dict)] if isinstance(listeners, list) else []
    return draw(drawn, registry), check(text, registry)


def draw(listeners: Sequence[Mapping[str, JsonValue]], registry: BlockRegistry) -> Canvas:
    """The canvas of these listeners. A way to a listener that is not there is left out."""
    ids = _ids(listeners)
    by_name: dict[str, int] = {}
    for index, listener in enumerate(listeners):
        by_name.setdefault(str(listener.get("name")), index)
    ways = [
        (index, by_name[way.to], way)
        for index, listener in enumerate(listeners)
        for way in ways_from(listener, registry)
        if way.to in by_name
    ]
    places = positions(len(listeners), [(source, target) for source, target, _ in ways])
    nodes = [_node(listener, ids[index], places[index]) for index, listener in enumerate(listeners)]
    edges: dict[str, dict[str, Any]] = {}
    for source, target, way in ways:
        edge = _edge(ids[source], ids[target], way, plain=TOOL if is_agent(listeners[source]) else ANSWER)
        edge["id"] = _free(edge["id"], edges)
        edges[edge["id"]] = edge
    return {"nodes": nodes, "edges": list(edges.values()), "viewport": {"x": 0, "y": 0, "zoom": 1}}


def is_agent(listener: Mapping[str, JsonValue]) -> bool:
    return listener.get("handler") is None and listener.get("prompt") is not None


def config_key(listener: Mapping[str, JsonValue]) -> str:
    return "config" if listener.get("config") is not None else "tool_config"


def ways_from(listener: Mapping[str, JsonValue], registry: BlockRegistry) -> Iterator[Way]:
    """The ways from a listener as it is written; what is not understood is passed over."""
    peers = listener.get("peers")
    plain = TOOL if is_agent(listener) else ANSWER
    for peer in peers if isinstance(peers, list) else []:
        if isinstance(peer, str):
            yield Way(peer, plain)
        elif isinstance(peer, dict) and isinstance(to := peer.get("to"), str):
            on = peer.get("on")
            if on in (None, ANSWER, ERROR):
                yield Way(to, plain if on is None else str(on), peer.get("when"))
    yield from _ways_of_config(listener, registry)


def _ways_of_config(listener: Mapping[str, JsonValue], registry: BlockRegistry) -> Iterator[Way]:
    """The listeners that a block's config names."""
    handler, config = listener.get("handler"), listener.get(config_key(listener))
    block = registry.find(handler) if isinstance(handler, str) else None
    if block is None or not isinstance(config, dict):
        return
    if block.name == BRANCH:
        cases = config.get("cases")
        for number, case in enumerate(cases if isinstance(cases, list) else []):
            if isinstance(case, dict) and isinstance(to := case.get("to"), str):
                yield Way(to, f"{CASE}{number}")
        if isinstance(otherwise := config.get("otherwise"), str):
            yield Way(otherwise, OTHERWISE)
    elif block.targets is not no_targets:
        try:
            yield from (Way(name, CONFIG) for name in block.targets(block.config.model_validate(config)))
        except ValidationError:
            return


def _ids(listeners: Sequence[Mapping[str, JsonValue]]) -> list[str]:
    """An id for each: its name where it has one of its own."""
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


def _edge(source: str, target: str, way: Way, *, plain: str) -> dict[str, Any]:
    suffix = "" if way.handle == plain else f":{way.handle}"
    return {
        "id": f"{source}->{target}{suffix}",
        "source": source,
        "target": target,
        "sourceHandle": way.handle,
        "targetHandle": None,
        "data": {"when": way.when, "on": way.handle if way.handle in (ANSWER, ERROR) else None},
    }
