"""Compiled definitions have the same listeners as the organisms that they come from."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bloxserver.blocks.registry import BlockRegistry, get_registry
from bloxserver.organism.compiled import CompiledOrganism, compile_organism
from bloxserver.organism.model import Listener, UnknownListener
from bloxserver.organism.parse import parse

EXAMPLES = sorted(Path("examples").glob("*.yaml"))
TEXT = """\
organism: {name: x}
execution: {timeout_seconds: 7, max_iterations: 9, on_failure: {url: "https://example.com/{{ secrets.PATH }}"}}
listeners:
  - {name: tool, description: d, handler: calculate, config: {expression: "payload.a * 2"}}
  - name: agent
    description: An agent
    prompt: Help.
    peers: [tool, {to: middle, on: answer}, {to: last, on: answer}, {to: last, on: error, when: 'error.code == "x"'}]
  - {name: middle, description: d, handler: echo, peers: [last]}
  - name: last
    join: any
    description: d
    handler: http.request
    config: {url: "https://example.com/{{ payload.id }}", headers: {Authorization: "{{ secrets.TOKEN }}"}}
    retries: 3
    backoff_seconds: 2
    timeout_seconds: 5
    for_each: payload.rows
    parallel: 7
    on_item_error: collect
"""


def values(listener: Listener) -> dict[str, Any]:
    """The attributes of a listener; conditions by their text, since syntax trees are not compared."""
    attributes = {field.name: getattr(listener, field.name) for field in fields(listener)}
    peers = [(peer.to, peer.on, peer.when) for peer in listener.peers]
    return attributes | {"peers": peers}


@pytest.mark.parametrize("text", [TEXT, *(path.read_text() for path in EXAMPLES)])
def test_loaded_listeners_equal_the_parsed_ones(text: str) -> None:
    organism = parse(text, get_registry())
    loaded = CompiledOrganism(json.loads(json.dumps(compile_organism(organism))), get_registry())
    for listener in organism.listeners:
        assert loaded.has(listener.name)
        assert values(loaded.listener(listener.name)) == values(listener)
        assert loaded.entry(listener.name) is loaded.listener(listener.name)
    assert loaded.entry().name == organism.entry().name
    assert loaded.execution == organism.execution
    assert loaded.on_failure == organism.on_failure
    assert loaded.joins == organism.joins


def test_plan_of_joins_names_listeners_before_them() -> None:
    plan = parse(TEXT, get_registry()).joins
    assert plan is not None
    names = {bit: name for name, bit in plan.bits.items()}
    join = plan.joins["last"]
    assert {name for bit, name in names.items() if join.upstream & bit} == {"agent", "middle"}
    assert {name for bit, name in names.items() if join.replaceable & bit} == {"agent", "middle"}
    assert (
        parse("organism: {name: x}\nlisteners: [{name: a, description: d, handler: echo}]", get_registry()).joins
        is None
    )


def test_unknown_listener_is_an_error() -> None:
    loaded = CompiledOrganism(compile_organism(parse(TEXT, get_registry())), get_registry())
    assert not loaded.has("nobody")
    with pytest.raises(UnknownListener):
        loaded.listener("nobody")
    with pytest.raises(UnknownListener):
        loaded.entry("nobody")


def test_listener_of_a_block_that_was_removed_is_unknown() -> None:
    loaded = CompiledOrganism(compile_organism(parse(TEXT, get_registry())), BlockRegistry([]))
    with pytest.raises(UnknownListener):
        loaded.listener("tool")
