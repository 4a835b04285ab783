"""Streamed responses of one provider, with a real server on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Literal

import pytest
from pydantic import SecretStr
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolCallPart, UserPromptPart
from pydantic_ai.tools import ToolDefinition

from bloxserver.clients.llm import ModelClient, create_http_client
from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_options import ModelOptions
from bloxserver.clients.model_streams import StreamEnd, StreamEvent, TextDelta, ToolCallDelta
from bloxserver.model_catalogue import Provider
from bloxserver.redaction import Redactor
from tests.llm_server import (
    LanguageModelServer,
    Reply,
    calls,
    fails,
    hangs_up,
    language_model,
    never,
    page,
    says,
    sends,
    unstreamed,
)
from tests.llm_streams import Call, Closed, streams

KEY = "sk-canary-key-4711"
MESSAGES: list[ModelMessage] = [ModelRequest([UserPromptPart("What do you guard?")])]
BIRDS = ToolDefinition(name="birds", parameters_json_schema={"type": "object", "properties": {}})


@pytest.fixture(params=["openai", "anthropic"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def client_of(
    kind: str, *replies: Reply, seconds: float = 30, first_token_seconds: float | None = None
) -> AsyncIterator[tuple[ModelClient, LanguageModelServer]]:
    async with language_model(replies) as server, create_http_client() as http:
        provider = Provider(
            "parrot",
            "anthropic" if kind == "anthropic" else "openai",
            server.url,
            SecretStr(KEY),
            timeout_seconds=seconds,
            first_token_timeout_seconds=first_token_seconds,
        )
        yield ModelClient(provider, http, Redactor([("[key]", KEY)])), server


async def events_of(kind: str, reply: Reply, *, options: ModelOptions = ModelOptions()) -> list[StreamEvent]:  # noqa: B008
    async with client_of(kind, reply) as (client, _):
        return [event async for event in client.stream(MESSAGES, "parrot-1", tools=[BIRDS], options=options)]


def text_of(events: Sequence[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def error_of(kind: str, reply: Reply, **times: float) -> tuple[str, list[StreamEvent]]:
    events: list[StreamEvent] = []
    async with client_of(kind, reply, **times) as (client, _):
        try:
            async for event in client.stream(MESSAGES, "parrot-1"):
                events.append(event)
        except ModelError as error:
            return error.code, events
    pytest.fail("the stream has ended without an error")


async def test_text_arrives_in_parts_and_the_end_has_all_of_it(kind: str) -> None:
    *parts, end = await events_of(kind, streams("I guard ", "a door", "."))
    assert parts == [TextDelta("I guard "), TextDelta("a door"), TextDelta(".")]
    assert isinstance(end, StreamEnd)
    assert "".join(part.content for part in end.response.parts if part.part_kind == "text") == "I guard a door."
    usage = end.response.usage
    assert (usage.input_tokens, usage.output_tokens, end.is_usage_estimated) == (10, 5, False)
    assert end.response.provider_url is None


async def test_text_is_yielded_before_the_response_has_ended(kind: str) -> None:
    go_on = asyncio.Event()
    async with (
        client_of(kind, streams("I guard ", go_on, "a door.")) as (client, _),
        aclosing(client.stream(MESSAGES, "parrot-1")) as events,
    ):
        assert await anext(events) == TextDelta("I guard ")
        go_on.set()
        assert text_of([event async for event in events]) == "a door."


async def test_tool_calls_arrive_in_parts(kind: str) -> None:
    wanted = Call("birds", ('{"size"', ": 7}")), Call("birds", ('{"size": 8}',), id="call_b")
    *parts, end = await events_of(kind, streams("Look:", *wanted, finish="tool_calls"))
    calls = [part for part in parts if isinstance(part, ToolCallDelta)]
    assert [(call.index, call.id, call.name) for call in calls if call.name] == [
        (0, "call_a", "birds"),
        (1, "call_b", "birds"),
    ]
    assert ["".join(call.arguments for call in calls if call.index == index) for index in (0, 1)] == [
        '{"size": 7}',
        '{"size": 8}',
    ]
    assert isinstance(end, StreamEnd)
    assert end.response.finish_reason == "tool_call"
    assert [part.args for part in end.response.parts if isinstance(part, ToolCallPart)] == [
        '{"size": 7}',
        '{"size": 8}',
    ]


async def test_usage_is_requested_from_servers_with_openais_api() -> None:
    async with client_of("openai", streams("I do.")) as (client, server):
        _ = [event async for event in client.stream(MESSAGES, "parrot-1")]
    assert server.requests[0].json["stream_options"] == {"include_usage": True}


async def test_usage_is_estimated_if_the_server_sends_none(kind: str) -> None:
    end = (await events_of(kind, streams("I guard a door.", usage=None)))[-1]
    assert isinstance(end, StreamEnd)
    assert (end.response.usage.input_tokens, end.response.usage.output_tokens, end.is_usage_estimated) == (6, 5, True)


@pytest.mark.parametrize("pieces", [("I guard ", "a d"), ()])
@pytest.mark.parametrize("end", ["complete", "closed"])
async def test_stream_without_a_finish_reason_was_cut_off(
    kind: str, end: Literal["complete", "closed"], pieces: tuple[str, ...]
) -> None:
    code, events = await error_of(kind, streams(*pieces, finish=None, end=end))
    assert (code, text_of(events)) == ("llm_cut_off", "".join(pieces))


async def test_error_within_the_stream_has_the_code_of_the_same_error_before_it(kind: str) -> None:
    error = {"type": "overloaded_error", "message": "busy", "code": "503"}
    assert await error_of(kind, streams("I", error=error)) == ("llm_unavailable", [TextDelta("I")])
    error = {"type": "no_known_type", "message": f"not with {KEY}"}
    assert await error_of(kind, streams("I", error=error)) == ("llm_cut_off", [TextDelta("I")])


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (fails(400), "llm_rejected"),
        (fails(401), "llm_unauthorized"),
        (fails(429), "llm_rate_limited"),
        (fails(500), "llm_unavailable"),
        (page(), "llm_unusable_answer"),
        (sends(""), "llm_unusable_answer"),
        (hangs_up(), "llm_cut_off"),
    ],
)
async def test_fault_before_the_stream_is_an_error(kind: str, reply: Reply, code: str) -> None:
    assert await error_of(kind, reply) == (code, [])


async def test_server_that_does_not_stream_is_used_all_the_same() -> None:
    wanted = calls(("birds", {"size": 7}), ("birds", {"size": 8}), text="Look:")
    events = await events_of("openai", unstreamed(wanted))
    end = events[-1]
    assert isinstance(end, StreamEnd)
    assert text_of(events) == "Look:"
    assert [json.loads(str(part.args)) for part in end.response.parts if isinstance(part, ToolCallPart)] == [
        {"size": 7},
        {"size": 8},
    ]
    assert (end.response.finish_reason, end.is_usage_estimated) == ("tool_call", False)
    assert (end.response.usage.input_tokens, end.response.usage.output_tokens) == (10, 5)


async def test_whole_response_of_another_api_is_an_error() -> None:
    assert await error_of("anthropic", unstreamed(says("Whole."))) == ("llm_unusable_answer", [])
    assert await error_of("openai", sends('{"choices": [3]}')) == ("llm_unusable_answer", [])


@pytest.mark.parametrize("responds", [False, True])
async def test_first_token_has_a_time_limit_of_its_own(kind: str, responds: bool) -> None:
    reply = streams(asyncio.Event(), "late") if responds else never()
    assert await error_of(kind, reply, first_token_seconds=0.2) == ("llm_timeout", [])


async def test_later_tokens_have_only_the_time_limit_of_the_response(kind: str) -> None:
    reply = streams("I ", asyncio.Event(), "do.")
    async with asyncio.timeout(10):
        code, events = await error_of(kind, reply, seconds=0.4, first_token_seconds=0.3)
    assert (code, events) == ("llm_timeout", [TextDelta("I ")])


async def test_time_in_which_the_receiver_does_not_read_does_not_count(kind: str) -> None:
    async with (
        client_of(kind, streams("I ", "do."), seconds=0.2) as (client, _),
        aclosing(client.stream(MESSAGES, "parrot-1")) as events,
    ):
        text = text_of([await anext(events)])
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=0.4)
        assert text + text_of([event async for event in events]) == "I do."


async def test_closing_the_stream_closes_the_connection(kind: str) -> None:
    closed = Closed()
    async with client_of(kind, streams("I ", closed)) as (client, _), asyncio.timeout(10):
        async with aclosing(client.stream(MESSAGES, "parrot-1")) as events:
            await anext(events)
        await closed.seen.wait()
        assert closed.seen.is_set()


@pytest.mark.parametrize("size", [1, 2, 5, len(KEY)])
async def test_key_that_is_split_between_parts_is_redacted(kind: str, size: int) -> None:
    said = f"My key is {KEY}. sk-can is not."
    pieces = [said[start : start + size] for start in range(0, len(said), size)]
    arguments = f'{{"key": "{KEY}"}}'
    call = Call("birds", tuple(arguments[start : start + size] for start in range(0, len(arguments), size)))
    *parts, end = await events_of(kind, streams(*pieces, call, finish="tool_calls"))
    assert text_of(parts) == "My key is [key]. sk-can is not."
    assert "".join(part.arguments for part in parts if isinstance(part, ToolCallDelta)) == '{"key": "[key]"}'
    assert isinstance(end, StreamEnd)
    assert kind == "anthropic" or KEY not in str(end.response)  # Anthropic's blocks are parts of their own


@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_response_that_ends_early_is_an_error_unless_it_is_expected(kind: str, finish: str) -> None:
    code, events = await error_of(kind, streams("I", finish=finish))
    assert (code, events) == ("llm_too_long" if finish == "length" else "llm_refused", [TextDelta("I")])
    *_, end = await events_of(kind, streams("I", finish=finish), options=ModelOptions(may_end_early=True))
    assert isinstance(end, StreamEnd)
    assert end.response.finish_reason == finish
