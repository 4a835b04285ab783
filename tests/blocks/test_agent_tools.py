"""What an agent is given: its config, and listeners as its tools."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, RootModel, ValidationError

from bloxserver.blocks.agent import AgentPayload, agent, tool_of


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": ""},
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"max_tokens": 0},
        {"max_tokens": 1_000_001},
        {"max_calls": 0},
        {"max_calls": 101},
        {"max_total_tokens": 0},
        {"model": ""},
        {"tools": []},
    ],
    ids=str,
)
def test_configs_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    agent.config.model_validate({"prompt": "You answer briefly."})
    with pytest.raises(ValidationError):
        agent.config.model_validate({"prompt": "You answer briefly."} | wrong)


class Kind(BaseModel):
    kind: Literal["a", "b"]


class Kinds(RootModel[list[Kind]]):
    """A list."""


class Point(BaseModel):
    kind: Kind
    x: int = 0


def test_a_listener_that_takes_an_object_is_a_tool_as_it_is() -> None:
    tool = tool_of("point", "Moves.", Point, ())
    assert (tool.name, tool.listener, tool.description, tool.wrapped) == ("point", "point", "Moves.", False)
    assert tool.schema == Point.model_json_schema()


def test_a_listener_that_takes_anything_else_is_a_tool_with_an_input() -> None:
    tool = tool_of("kinds", "Counts.", Kinds, ())
    assert tool.wrapped
    assert tool.schema["required"] == ["input"]
    assert tool.schema["properties"]["input"]["items"] == {"$ref": "#/$defs/Kind"}
    assert tool.schema["$defs"].keys() == {"Kind"}


def test_an_agent_is_told_a_text_by_other_agents() -> None:
    tool = tool_of("helper", "Helps.", AgentPayload, ())
    assert not tool.wrapped
    assert tool.schema["properties"]["text"]["type"] == "string"
    assert tool.schema["required"] == ["text"]


def test_names_of_tools_are_what_models_can_spell_and_differ() -> None:
    taken: list[str] = []
    for name in ("a.b", "a_b", "a-b", "x" * 80, "x" * 90, "a_b_2"):
        taken.append(tool_of(name, "", Point, taken).name)
    assert taken == ["a_b", "a_b_2", "a-b", "x" * 64, "x" * 62 + "_2", "a_b_2_2"]
