"""Chat completions, with OpenAI's library as the client of a real server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from bloxserver.models.database import Database
from bloxserver.models.enums import Tier
from bloxserver.plans import PLANS
from tests.api.chat_completions import MESSAGES, serving, streamed, text_of
from tests.api.contract import covers
from tests.llm_server import (
    calls,
    says,
)
from tests.llm_streams import Call, Closed, streams

BIRDS: list[Any] = [{"type": "function", "function": {"name": "birds", "description": "Counts.", "strict": False}}]


@pytest.fixture(params=["openai", "anthropic"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@covers("llm.chat")
async def test_completion(live_database: Database, tmp_path: Path, kind: str) -> None:
    async with serving(live_database, tmp_path, says("A door."), kind=kind) as (server, _):
        completion = await server.openai.chat.completions.create(model="fast", messages=MESSAGES)
    assert completion.object == "chat.completion"
    assert completion.model == "fast"
    [choice] = completion.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "A door.", "stop")
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (
        10,
        5,
        15,
    )


async def test_response_from_the_cache_is_marked(live_database: Database, tmp_path: Path) -> None:
    body = {"model": "parrot-1", "messages": MESSAGES, "temperature": 0}
    async with serving(live_database, tmp_path, says("A door.")) as (server, [provider]):
        first, second = [await server.http.post("/v1/chat/completions", json=body) for _ in range(2)]
    assert ("x-cache" in first.headers, second.headers["x-cache"], len(provider.requests)) == (False, "hit", 1)
    assert second.json()["choices"] == first.json()["choices"]


async def test_limit_of_the_plan_names_what_is_used_and_when_it_is_reset(
    live_database: Database, tmp_path: Path
) -> None:
    replies = serving(live_database, tmp_path, says("A door."), tier=Tier.FREE, rate_limits=True)
    async with replies as (server, _):
        body = {"model": "parrot-1", "messages": MESSAGES}
        statuses = []
        while 429 not in statuses:  # twice the limit at most, if a minute ends meanwhile
            refused = await server.http.post("/v1/chat/completions", json=body)
            statuses.append(refused.status_code)
        assert len(statuses) in range(11, 22)
        assert set(statuses) == {200, 429}
    problem, headers = refused.json(), refused.headers
    reset = int(headers["retry-after"])
    assert (problem["code"], problem["error"]["code"]) == ("llm_limit_reached", "llm_limit_reached")
    assert problem["details"].keys() == {"name", "limit", "used", "resetSeconds"}
    assert (problem["details"]["name"], problem["details"]["limit"]) == ("llm_requests_per_minute", 10)
    assert 0 < problem["details"]["resetSeconds"] == int(headers["x-ratelimit-reset"]) == reset <= 60
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("10", "0")


@covers("llm.chat.stream")
async def test_streamed_completion(live_database: Database, tmp_path: Path, kind: str) -> None:
    async with serving(live_database, tmp_path, streams("A ", "door."), kind=kind) as (server, _):
        chunks = await streamed(server.openai)
        with_usage = await streamed(server.openai, stream_options={"include_usage": True})
        raw = await server.http.post(
            "/v1/chat/completions", json={"model": "parrot-1", "messages": MESSAGES, "stream": True}
        )
    assert text_of(chunks) == "A door."
    assert {(chunk.object, chunk.id, chunk.model) for chunk in chunks} == {
        ("chat.completion.chunk", chunks[0].id, "parrot-1")
    }
    assert (chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason) == ("assistant", "stop")
    assert all(chunk.usage is None for chunk in chunks)
    assert with_usage[-1].choices == []
    assert with_usage[-1].usage is not None
    assert with_usage[-1].usage.total_tokens == 15
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.endswith("data: [DONE]\n\n")


async def test_stream_from_the_cache_is_marked(live_database: Database, tmp_path: Path, kind: str) -> None:
    body = {"model": "parrot-1", "messages": MESSAGES, "stream": True, "temperature": 0}
    given = body | {"stream_options": {"include_usage": True}}
    async with serving(live_database, tmp_path, streams("A ", "door."), kind=kind) as (server, [provider]):
        first = await server.http.post("/v1/chat/completions", json=body)
        second = await server.http.post("/v1/chat/completions", json=body)
        chunks = await streamed(server.openai, **given)
    assert ("x-cache" in first.headers, second.headers["x-cache"], len(provider.requests)) == (False, "hit", 1)
    assert second.text.endswith("data: [DONE]\n\n")
    assert (text_of(chunks), chunks[-2].choices[0].finish_reason) == ("A door.", "stop")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 0


async def test_tokens_arrive_while_the_provider_still_responds(live_database: Database, tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with serving(live_database, tmp_path, streams("A ", go_on, "door.")) as (server, _):
        stream = await server.openai.chat.completions.create(model="parrot-1", messages=MESSAGES, stream=True)
        first, second = await anext(stream), await anext(stream)
        assert text_of([first, second]) == "A "
        go_on.set()
        assert text_of([chunk async for chunk in stream]) == "door."


async def test_conversation_with_tools_reaches_the_provider(live_database: Database, tmp_path: Path, kind: str) -> None:
    reply = calls(("birds", {"size": 7}), text="Look:")
    async with serving(live_database, tmp_path, reply, kind=kind) as (server, [provider]):
        completion = await server.openai.chat.completions.create(
            model="parrot-1",
            messages=[
                {"role": "system", "content": "You guard."},
                {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "call_x", "type": "function", "function": {"name": "birds", "arguments": '{"size": 1}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "call_x", "content": "two"},
                {"role": "assistant", "content": "Two."},
                {"role": "user", "content": "And now?"},
            ],
            tools=[*BIRDS, {"type": "function", "function": {"name": "gates"}}],
            tool_choice={"type": "function", "function": {"name": "birds"}},
            temperature=0.5,
            top_p=0.9,
            max_tokens=77,
            stop=["END"],
            user="someone",
        )
    message = completion.choices[0].message
    assert (message.content, completion.choices[0].finish_reason) == ("Look:", "tool_calls")
    assert message.tool_calls is not None
    assert [(call.type, getattr(call, "function").arguments) for call in message.tool_calls] == [  # noqa: B009
        ("function", '{"size":7}' if kind == "anthropic" else '{"size": 7}')
    ]
    [asked] = provider.requests
    assert asked.texts == ["You guard.", "How many?", "two", "Two.", "And now?"]
    assert (asked.json["temperature"], asked.json["top_p"], asked.json["max_tokens"]) == (0.5, 0.9, 77)
    assert asked.json["stop" if kind == "openai" else "stop_sequences"] == ["END"]
    assert "user" not in asked.json
    choices = {
        "openai": {"type": "function", "function": {"name": "birds"}},
        "anthropic": {"type": "tool", "name": "birds"},
    }
    assert asked.json["tool_choice"] == choices[kind]
    sent = json.dumps(asked.json["messages"])
    assert sent.count("call_x") == 2


async def test_streamed_tool_calls(live_database: Database, tmp_path: Path, kind: str) -> None:
    reply = streams(Call("birds", ('{"size"', ": 7}")), Call("birds", ("{}",), id="call_b"), finish="tool_calls")
    async with (
        serving(live_database, tmp_path, reply, kind=kind) as (server, _),
        server.openai.chat.completions.stream(model="parrot-1", messages=MESSAGES, tools=BIRDS) as stream,
    ):
        completion = await stream.get_final_completion()
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
        ("call_a", "birds", '{"size": 7}'),
        ("call_b", "birds", "{}"),
    ]


async def test_parameters_of_openais_api_are_sent_to_its_providers(live_database: Database, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"size": {"type": "integer"}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "bird", "schema": schema, "strict": True}}
    async with serving(live_database, tmp_path, says("{}")) as (server, [provider]):
        await server.openai.chat.completions.create(
            model="parrot-1", messages=MESSAGES, seed=7, presence_penalty=0.5, logit_bias={"5": 1}, response_format=form
        )
        await server.openai.chat.completions.create(
            model="parrot-1", messages=MESSAGES, response_format={"type": "json_object"}, max_completion_tokens=9
        )
    first, second = (asked.json for asked in provider.requests)
    assert (first["seed"], first["presence_penalty"], first["logit_bias"], first["response_format"]) == (
        7,
        0.5,
        {"5": 1},
        form,
    )
    assert (second["response_format"], second["max_tokens"]) == ({"type": "json_object"}, 9)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_response_that_ends_early_has_its_reason(
    live_database: Database, tmp_path: Path, finish: str, stream: bool
) -> None:
    reply = streams("A d", finish=finish) if stream else says("A d", finish=finish)
    async with serving(live_database, tmp_path, reply) as (server, _):
        if stream:
            chunks = await streamed(server.openai, max_tokens=2)
            assert (text_of(chunks), chunks[-1].choices[0].finish_reason) == ("A d", finish)
        else:
            completion = await server.openai.chat.completions.create(model="parrot-1", messages=MESSAGES)
            choice = completion.choices[0]
            assert (choice.message.content, choice.finish_reason) == ("A d", finish)


async def test_parameters_without_effect_are_ignored(live_database: Database, tmp_path: Path) -> None:
    given: dict[str, Any] = {"n": 1, "logprobs": False, "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    given |= {"top_logprobs": None, "functions": None, "tools": None, "temperature": None}
    async with serving(live_database, tmp_path, says("A door.")) as (server, _):
        body = {"model": "parrot-1", "messages": MESSAGES, **given}
        response = await server.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_of_the_client_closes_the_connection_to_the_provider(
    live_database: Database, tmp_path: Path, stream: bool
) -> None:
    closed = Closed()
    reply = streams("A ", closed)
    async with serving(live_database, tmp_path, reply) as (server, [provider]), asyncio.timeout(20):
        create = server.openai.chat.completions.create
        if stream:
            tokens = await create(model="parrot-1", messages=MESSAGES, stream=True)
            await anext(tokens)
            await tokens.close()
        else:
            waiting = asyncio.create_task(create(model="parrot-1", messages=MESSAGES))
            await provider.was_asked.wait()
            waiting.cancel()
        await closed.seen.wait()
    assert closed.seen.is_set()


async def test_no_transaction_is_open_while_the_provider_responds(live_database: Database, tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with serving(live_database, tmp_path, streams("A ", go_on, "door.")) as (server, _):
        stream = await server.openai.chat.completions.create(model="parrot-1", messages=MESSAGES, stream=True)
        await anext(stream)
        pool = live_database.engine.pool
        assert getattr(pool, "checkedout")() == 0  # noqa: B009
        go_on.set()
        assert text_of([chunk async for chunk in stream]) == "A door."


async def test_streams_count_in_the_plan(live_database: Database, tmp_path: Path) -> None:
    go_on = asyncio.Event()
    limit = PLANS["free"].streams
    async with serving(live_database, tmp_path, streams("A ", go_on, "door."), tier=Tier.FREE) as (server, _):
        create = server.openai.chat.completions.create
        held = [await create(model="parrot-1", messages=MESSAGES, stream=True) for _ in range(limit)]
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await create(model="parrot-1", messages=MESSAGES, stream=True)
        assert caught.value.code == "streams_limit_reached"
        go_on.set()
        for stream in held:
            assert text_of([chunk async for chunk in stream]) == "A door."
        assert text_of(await streamed(server.openai)) == "A door."
