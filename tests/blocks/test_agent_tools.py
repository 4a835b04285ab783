"""The config of agents, and listeners as tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from pydantic import BaseModel, JsonValue, RootModel, ValidationError

from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import Block, BlockContext, NoConfig, Tool
from bloxserver.blocks.registry import get_registry
from bloxserver.blocks.tools import tool_of, unexpected_arguments


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": ""},
        {"prompt": " \n"},
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
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_invalid_agent_configs_are_rejected(wrong: dict[str, Any]) -> None:
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


async def ignore(payload: BaseModel, config: NoConfig, context: BlockContext) -> JsonValue:
    return None


def tool_with(payload: type[BaseModel], name: str = "tool", taken: Sequence[str] = ()) -> Tool:
    return tool_of(name, "Does something.", Block("b", "d", payload, NoConfig, ignore), NoConfig(), taken)


def tool_for(handler: str, **given: JsonValue) -> Tool:
    """Return the tool of a listener with this handler and config."""
    block = get_registry().find(handler)
    assert block is not None
    return tool_of("tool", "Does something.", block, block.config.model_validate(given), (), given)


def test_listener_with_object_payload_uses_its_schema_as_tool_schema() -> None:
    tool = tool_with(Point, "point")
    assert (tool.name, tool.listener, tool.description, tool.wrapped) == ("point", "point", "Does something.", False)
    assert tool.schema == Point.model_json_schema()


def test_listener_with_other_payload_wraps_its_schema_in_input() -> None:
    tool = tool_with(Kinds)
    assert tool.wrapped
    assert tool.schema["required"] == ["input"]
    assert tool.schema["properties"]["input"]["items"] == {"$ref": "#/$defs/Kind"}
    assert tool.schema["$defs"].keys() == {"Kind"}


def test_agent_as_tool_takes_a_text() -> None:
    tool = tool_of("helper", "Helps.", agent, agent.config.model_validate({"prompt": "p"}), ())
    assert not tool.wrapped
    assert tool.schema["properties"]["text"]["type"] == "string"
    assert tool.schema["required"] == ["text"]


def test_tool_names_are_valid_and_unique() -> None:
    taken: list[str] = []
    for name in ("a.b", "a_b", "a-b", "x" * 80, "x" * 90, "a_b_2"):
        taken.append(tool_with(Point, name, taken).name)
    assert taken == ["a_b", "a_b_2", "a-b", "x" * 64, "x" * 62 + "_2", "a_b_2_2"]


URL = "https://example.com/items"


@pytest.mark.parametrize(
    ("handler", "given", "shown", "required"),
    [
        ("http.request", {}, {"url", "method", "headers", "body"}, {"url"}),
        ("http.request", {"method": "GET"}, {"url", "headers", "body"}, {"url"}),
        ("http.request", {"method": "POST", "body": {}}, {"url", "headers"}, {"url"}),
        ("http.request", {"url": URL}, set(), set()),
        ("http.request", {"url": URL, "method": "POST"}, {"input"}, {"input"}),
        ("http.request", {"url": URL, "method": "POST", "body": "x"}, set(), set()),
        ("http.request", {"url": URL + "/{{ payload.id }}"}, {"id"}, {"id"}),
        ("http.request", {"url": URL + "/{{ payload.id }}", "method": "PUT"}, {"id"}, {"id"}),
        ("http.request", {"url": URL, "method": "POST", "body": "{{ payload }}"}, {"input"}, {"input"}),
        ("http.request", {"url": URL + "/{{ input.id }}"}, set(), set()),
        ("key_value", {}, {"operation", "key", "value", "by"}, {"operation", "key"}),
        ("key_value", {"operation": "get"}, {"key"}, {"key"}),
        ("key_value", {"operation": "set"}, {"key", "value"}, {"key"}),
        ("key_value", {"operation": "set", "key": "k"}, {"value"}, set()),
        ("key_value", {"operation": "set", "key": "k {{ payload.order }}", "value": 1}, {"order"}, {"order"}),
        ("key_value", {"operation": "increment", "key": "k"}, {"by"}, set()),
        ("key_value", {"operation": "increment", "key": "k", "by": 2}, set(), set()),
        ("calculate", {}, {"expression", "variables"}, {"expression"}),
        ("calculate", {"expression": "payload * 2"}, {"input"}, {"input"}),
        ("json.parse", {}, {"text"}, {"text"}),
        ("json.parse", {"path": "body.data"}, {"body"}, {"body"}),
        ("text.template", {"template": "{{ payload.user.name }} {{ payload.user.age }}"}, {"user"}, {"user"}),
        ("text.template", {"template": "{{ payload }} {{ payload.user }}"}, {"input"}, {"input"}),
        ("text.template", {"template": "Hello"}, {"input"}, {"input"}),
        ("transform", {"output": {"a": ["{{ payload.items.0 }}"]}}, {"items"}, {"items"}),
        ("transform", {"mapping": {"a": "b.c", "d": "e"}}, {"b", "e"}, {"b", "e"}),
        ("transform", {"mapping": {"a": "."}}, {"input"}, {"input"}),
        ("transform", {"expression": "payload.a"}, {"input"}, {"input"}),
        ("email.send", {"to": "a@b.example", "subject": "{{ payload.about }}", "text": "t"}, {"about"}, {"about"}),
        ("webhook.send", {"url": URL}, {"input"}, {"input"}),
        ("webhook.send", {"url": URL + "/{{ payload.id }}"}, {"id"}, {"id"}),
        ("flow.call", {"flow": "other"}, {"input"}, {"input"}),
        ("echo", {}, {"input"}, {"input"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_tool_schema_omits_members_set_by_the_config(
    handler: str, given: dict[str, JsonValue], shown: set[str], required: set[str]
) -> None:
    tool = tool_for(handler, **given)
    assert set(tool.schema["properties"]) == shown
    assert set(tool.schema.get("required", ())) == required


def test_tool_schema_contains_nested_placeholder_paths() -> None:
    template = "{{ payload.user.name }} {{ payload.user.tags.0 }} {{ payload.user.tags.1.x }}"
    user = tool_for("text.template", template=template).schema["properties"]["user"]
    assert user["required"] == ["name", "tags"]
    assert "properties" not in user["properties"]["tags"]


@pytest.mark.parametrize(
    ("handler", "given", "arguments", "names"),
    [
        ("http.request", {}, {"url": URL, "extra": 1}, []),
        ("http.request", {"method": "GET"}, {"url": URL, "method": "DELETE"}, ["method"]),
        ("http.request", {"url": URL}, {"url": "https://evil.example", "body": 1}, ["url", "body"]),
        ("http.request", {"url": URL, "method": "POST"}, {"input": 1, "url": "x"}, ["url"]),
        ("http.request", {"url": URL + "/{{ payload.id }}", "method": "PUT"}, {"id": 1, "name": "n"}, []),
        (
            "key_value",
            {"operation": "get", "key": "k"},
            {"operation": "set", "key": "l", "value": 1},
            ["operation", "key", "value"],
        ),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_arguments_set_by_the_config_are_unexpected(
    handler: str, given: dict[str, JsonValue], arguments: dict[str, JsonValue], names: list[str]
) -> None:
    assert unexpected_arguments(tool_for(handler, **given), arguments) == names
