"""Which requests to language models are equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic_ai.messages import (
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from bloxserver.clients.model_options import ModelOptions
from bloxserver.llm.cache_keys import MAX_CHARACTERS, MAX_PARTS, request_key
from bloxserver.llm.calls import ModelCall
from bloxserver.model_catalogue import Provider, Route

USER = UUID(int=1)
SCHEMA = {"type": "object", "properties": {"url": {"type": "string"}}}
ROUTES = [Route(Provider("one", "openai", "https://one.example.com/v1"), "parrot-1")]


def tool(**given: Any) -> ToolDefinition:
    return ToolDefinition(**({"name": "fetch", "description": "Fetches", "parameters_json_schema": SCHEMA} | given))


def conversation(*ids: str, **given: Any) -> list[ModelMessage]:
    """Two tool calls and their results."""
    values = {"prompt": "Fetch both.", "args": {"url": "a"}, "result": "page", "outcome": "success"} | given
    first, second = ids or ("call_1", "call_2")
    return [
        ModelRequest([SystemPromptPart("You fetch."), UserPromptPart(values["prompt"])]),
        ModelResponse(
            [TextPart("Yes."), ToolCallPart("fetch", values["args"], first), ToolCallPart("fetch", {}, second)],
            usage=RequestUsage(input_tokens=given.get("tokens", 1)),
            model_name=uuid4().hex,
            provider_response_id=uuid4().hex,
        ),
        ModelRequest(
            [
                ToolReturnPart("fetch", values["result"], first, outcome=values["outcome"]),
                ToolReturnPart("fetch", "other", second if not given.get("swapped") else first),
            ]
        ),
    ]


def call(messages: list[ModelMessage] | None = None, **given: Any) -> ModelCall:
    values: dict[str, Any] = {"temperature": 0, "max_tokens": 100, "tools": [tool()]}
    return ModelCall(messages or conversation(), **(values | given))


def key(messages: list[ModelMessage] | None = None, **given: Any) -> bytes | None:
    return request_key(call(messages, **given), ROUTES, USER)


def test_equal_requests_have_equal_keys() -> None:
    """Their timestamps, ids and tokens differ."""
    assert key() is not None
    assert key() == key() == key(conversation("a", "b", tokens=17)) == key(temperature=0.0)


def test_name_that_means_the_same_model_makes_no_difference() -> None:
    assert key(model="parrot-1") == key(model="an alias") == key(model=None)


@pytest.mark.parametrize(
    "messages",
    [
        conversation(prompt="Fetch both!"),
        conversation(args={"url": "b"}),
        conversation(args={"url": 1}),
        conversation(args='{"url": "a"}'),
        conversation(args=None),
        conversation(result="another page"),
        conversation(result={"a": 1}),
        conversation(result=["text", 4]),
        conversation(outcome="failed"),
        conversation(swapped=True),
        conversation()[:1],
        [*conversation(), ModelRequest([UserPromptPart("")])],
        [ModelRequest([UserPromptPart("You fetch."), SystemPromptPart("Fetch both.")]), *conversation()[1:]],
        [ModelRequest([UserPromptPart("You "), UserPromptPart("fetch.Fetch both.")]), *conversation()[1:]],
    ],
)
def test_messages_distinguish_requests(messages: list[ModelMessage]) -> None:
    assert key(messages) not in (key(), None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([UserPromptPart("ab"), UserPromptPart("c")], [UserPromptPart("a"), UserPromptPart("bc")]),
        ([UserPromptPart("a"), UserPromptPart("")], [UserPromptPart("a")]),
        (
            [ToolReturnPart("fetch", "page"), ToolReturnPart("fetch", ["text", 4])],
            [ToolReturnPart("fetch", ["text", 4]), ToolReturnPart("fetch", "page")],
        ),
        ([SystemPromptPart("a")], [UserPromptPart("a")]),
    ],
)
def test_same_texts_in_other_parts_distinguish_requests(
    one: list[ModelRequestPart], other: list[ModelRequestPart]
) -> None:
    assert key([ModelRequest(one)]) != key([ModelRequest(other)])


@pytest.mark.parametrize(
    "given",
    [
        {"options": ModelOptions(top_p=0.5)},
        {"options": ModelOptions(stop=("END",))},
        {"options": ModelOptions(tool_choice=("birds",))},
        {"options": ModelOptions(openai_parameters={"seed": 7})},
        {"options": ModelOptions(may_end_early=True)},
        {"temperature": 0.1},
        {"max_tokens": None},
        {"max_tokens": 101},
        {"tools": []},
        {"tools": [tool(), tool(name="other")]},
        {"tools": [tool(description="Sends")]},
        {"tools": [tool(strict=True)]},
        {"tools": [tool(parameters_json_schema={"type": "object"})]},
    ],
)
def test_settings_and_tools_distinguish_requests(given: dict[str, Any]) -> None:
    assert key(**given) not in (key(), None)


@pytest.mark.parametrize(
    "routes",
    [
        [],
        [*ROUTES, *ROUTES],
        [Route(ROUTES[0].provider, "parrot-2")],
        [Route(replace(ROUTES[0].provider, name="two"), "parrot-1")],
        [Route(replace(ROUTES[0].provider, base_url="https://two.example.com/v1"), "parrot-1")],
    ],
)
def test_providers_distinguish_requests(routes: list[Route]) -> None:
    assert request_key(call(), routes, USER) != key()


def test_owners_distinguish_requests() -> None:
    assert len({request_key(call(), ROUTES, owner) for owner in (USER, UUID(int=2), None)}) == 3


def test_text_that_is_not_unicode_has_a_key() -> None:
    assert key(conversation(prompt="\ud83d")) not in (key(), None)


@pytest.mark.parametrize(
    "parts",
    [
        [UserPromptPart(["What is this?", ImageUrl("https://example.com/changes.png")])],
        [UserPromptPart("a" * (MAX_CHARACTERS + 1))],
        [UserPromptPart("a")] * (MAX_PARTS + 1),
    ],
    ids=["file", "long", "many parts"],
)
def test_requests_with_files_and_large_requests_have_no_key(parts: list[ModelRequestPart]) -> None:
    assert key([ModelRequest(parts)]) is None
