"""How many messages the agents of a definition may handle."""

from __future__ import annotations

import pytest

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.agent_uses import agent_uses
from bloxserver.organism.parse import parse
from tests.engine.pump_runs import echo, organism


def agent(name: str, *peers: str, calls: int = 20) -> str:
    return f"name: {name}, prompt: p, config: {{max_calls: {calls}}}, peers: [{', '.join(peers)}]"


def messages(*listeners: str, limit: int = 50) -> dict[int, int]:
    """The messages of the agents, by their `max_calls`."""
    text = organism(*listeners, execution=f"{{max_iterations: {limit}}}")
    return {use.max_calls: use.messages for use in agent_uses(parse(text, get_registry()))}


@pytest.mark.parametrize(
    ("listeners", "expected"),
    [
        ([agent("a")], {20: 1}),
        ([agent("a", "{to: b, on: answer}"), agent("b", calls=3)], {20: 1, 3: 1}),
        ([echo("e", "x", "y"), echo("x", "a"), echo("y", "a"), agent("a")], {20: 2}),
        ([echo("e", "a", "b"), agent("a"), agent("b")], {20: 2}),
        ([agent("a", "b"), agent("b", "{to: c, on: answer}", calls=3), agent("c", calls=4)], {20: 1, 3: 50}),
        ([echo("e", "x"), echo("x", "{to: e, when: 'payload == 1'}", "a"), agent("a")], {20: 50}),
        ([echo("e", "{to: a, on: error}"), agent("a")], {20: 1}),
        ([echo("e"), agent("a"), echo("f", "a", "e")], {20: 1}),
        ([echo("e"), echo("f", "e"), agent("a", "e", calls=2), echo("g", "a")], {}),
        ([echo("e")], {}),
    ],
    ids=["one", "chain", "diamond", "equal agents", "tools", "cycle", "error", "default entry", "unreached", "none"],
)
def test_messages_of_agents_are_bounded(listeners: list[str], expected: dict[int, int]) -> None:
    assert messages(*listeners) == expected


def test_retries_are_further_calls() -> None:
    assert messages("name: a, prompt: p, retries: 3") == {23: 1}


def test_wide_and_deep_definitions_are_bounded() -> None:
    layers = [echo("e", "l0a", "l0b")]
    for layer in range(60):
        layers += [echo(f"l{layer}{side}", f"l{layer + 1}a", f"l{layer + 1}b") for side in "ab"]
    assert messages(*layers, echo("l60a", "a"), echo("l60b", "a"), agent("a")) == {20: 50}
