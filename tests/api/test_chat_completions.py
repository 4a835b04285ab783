"""Chat completions, with OpenAI's library as the client of a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from bloxserver.llm.provider_leases import ProviderLeases
from bloxserver.models.database import Database
from bloxserver.models.enums import Scope, Tier
from bloxserver.plans import PLANS
from tests.api.contract import covers
from tests.api.openai_clients import Endpoint, endpoint
from tests.llm.catalogues import KEY, providers
from tests.llm_server import (
    Asked,
    LanguageModelServer,
    Reply,
    calls,
    fails,
    language_model,
    never,
    page,
    says,
)
from tests.llm_streams import Call, Closed, streams

MESSAGES: list[Any] = [{"role": "user", "content": "What do you guard?"}]
BIRDS: list[Any] = [{"type": "function", "function": {"name": "birds", "description": "Counts.", "strict": False}}]
Scripts = Sequence[Callable[[Asked], Reply]]


@pytest.fixture(params=["openai", "anthropic"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def always(reply: Reply) -> Callable[[Asked], Reply]:
    return lambda asked: reply


@asynccontextmanager
async def serving(
    database: Database, folder: Path, *replies: Reply, kind: str = "openai", **options: Any
) -> AsyncIterator[tuple[Endpoint, list[LanguageModelServer]]]:
    """The endpoint with a provider of `parrot-1` for each reply, which are asked in this order."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(language_model(always(reply))) for reply in replies]
        urls = {f"provider-{number}": server.url for number, server in enumerate(servers)}
        provider = {name: options.pop(name) for name in [*options] if name.endswith("timeout_seconds")}
        document = {"providers": providers(urls, **provider | {"kind": kind}), "aliases": {"fast": ["parrot-1"]}}
        yield await stack.enter_async_context(endpoint(database, folder, document, **options)), servers


async def streamed(client: openai.AsyncOpenAI, **given: Any) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(
        **{"model": "parrot-1", "messages": MESSAGES, "stream": True} | given  # type: ignore[call-overload]
    )
    return [chunk async for chunk in stream]


def text_of(chunks: Sequence[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


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


async def test_parameters_that_anthropic_does_not_have_are_refused(live_database: Database, tmp_path: Path) -> None:
    async with serving(live_database, tmp_path, says("{}"), kind="anthropic") as (server, [provider]):
        for given in ({"seed": 7}, {"response_format": {"type": "json_object"}}):
            with pytest.raises(openai.BadRequestError, match="does not support") as caught:
                await streamed(server.openai, **given)
            assert caught.value.code == "llm_rejected"
    assert provider.requests == []


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


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"extra_body": {"top_k": 5}}, "top_k"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content"),
]


@covers("llm.chat.unsupported")
async def test_parameter_that_would_change_the_response_is_refused(live_database: Database, tmp_path: Path) -> None:
    async with serving(live_database, tmp_path, says("no")) as (server, [provider]):
        for given, parameter in UNSUPPORTED:
            with pytest.raises(openai.BadRequestError, match="is not supported") as caught:
                await streamed(server.openai, **given)
            error = caught.value
            assert (error.code, error.param, error.type) == (
                "unsupported_parameter",
                parameter,
                "invalid_request_error",
            )
    assert provider.requests == []


async def test_parameters_without_effect_are_ignored(live_database: Database, tmp_path: Path) -> None:
    given: dict[str, Any] = {"n": 1, "logprobs": False, "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    given |= {"top_logprobs": None, "functions": None, "tools": None, "temperature": None}
    async with serving(live_database, tmp_path, says("A door.")) as (server, _):
        body = {"model": "parrot-1", "messages": MESSAGES, **given}
        response = await server.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text


INVALID = [
    (b"{", None),
    (b'{"model": "\\ud800", "messages": []}', None),
    (b'{"model": "m", "messages": [{"role": "user", "content": NaN}]}', None),
    (b"[]", None),
    (b"[" * 200_000, None),
    (b'{"model": "m", "messages": []}', "messages"),
    (b'{"model": "m", "messages": [{"role": "parrot"}]}', "messages.0.role"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 3}', "temperature"),
    (
        b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", '
        b'"function": {"name": "f", "parameters": {"x": 1e999}}}]}',
        "tools.0.function.parameters.x.float",
    ),
]


async def test_invalid_body_is_an_error_in_both_forms(live_database: Database, tmp_path: Path) -> None:
    async with serving(live_database, tmp_path, says("no")) as (server, [provider]):
        for body, parameter in INVALID:
            response = await server.http.post("/v1/chat/completions", content=body)
            assert response.status_code == 422
            assert response.headers["content-type"] == "application/problem+json"
            problem = response.json()
            assert (problem["code"], problem["error"]["code"], problem["error"]["param"]) == (
                "validation_error",
                "validation_error",
                parameter,
            )
    assert provider.requests == []


FAULTS: list[tuple[Reply, int, str, str | None]] = [
    (fails(400, "bad"), 400, "llm_rejected", None),
    (fails(400, code="context_length_exceeded"), 400, "llm_context_exceeded", None),
    (fails(401), 502, "llm_unauthorized", None),
    (fails(404, code="model_not_found"), 404, "llm_model_not_found", None),
    (fails(429, code="insufficient_quota"), 503, "llm_quota_exceeded", "5"),
    (fails(500), 503, "llm_unavailable", "5"),
    (page(), 502, "llm_unusable_answer", None),
    (never(), 504, "llm_timeout", None),
    (fails(429, headers={"Retry-After": "17"}), 429, "llm_rate_limited", "17"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_call_that_waited_too_long_for_a_provider_is_503(
    live_database: Database, tmp_path: Path, stream: bool
) -> None:
    # Another process uses the only slot.
    await ProviderLeases(live_database).renew("only", 1, 1, lambda slots: slots)
    async with language_model([]) as provider:
        document = {"providers": providers({"only": provider.url}, max_concurrent=1, timeout_seconds=0.3)}
        async with endpoint(live_database, tmp_path, document) as server:
            with pytest.raises(openai.APIStatusError) as caught:
                await server.openai.chat.completions.create(model="parrot-1", messages=MESSAGES, stream=stream)
    error = caught.value
    assert (error.status_code, error.code, error.response.headers["retry-after"]) == (503, "llm_overloaded", "60")
    assert "too many calls of language models are waiting (timeout)" in error.message
    assert provider.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_error_before_the_first_token(live_database: Database, tmp_path: Path, stream: bool) -> None:
    replies = iter([reply for reply, *_ in FAULTS])
    async with serving(live_database, tmp_path, lambda api: next(replies)(api), timeout_seconds=2) as (server, _):
        for _, status, code, retry_after in FAULTS:
            with pytest.raises(openai.APIStatusError) as caught:
                await server.openai.chat.completions.create(model="parrot-1", messages=MESSAGES, stream=stream)
            error = caught.value
            headers = error.response.headers
            assert (error.status_code, error.code, headers.get("retry-after")) == (status, code, retry_after)
            assert headers["content-type"] == "application/problem+json"
            problem = error.response.json()
            assert (problem["status"], problem["code"], problem["detail"]) == (
                status,
                code,
                problem["error"]["message"],
            )
            assert problem["error"].keys() == {"message", "type", "code", "param"}
            assert KEY not in error.response.text


@pytest.mark.parametrize("finish", [None, "error"])
async def test_error_within_a_stream_is_its_last_event(
    live_database: Database, tmp_path: Path, finish: str | None
) -> None:
    reply = streams("A d", finish=None) if finish is None else streams("A d", error={"message": "no", "code": 503})
    async with serving(live_database, tmp_path, reply) as (server, _):
        stream = await server.openai.chat.completions.create(model="parrot-1", messages=MESSAGES, stream=True)
        assert text_of([await anext(stream), await anext(stream)]) == "A d"
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
        raw = await server.http.post(
            "/v1/chat/completions", json={"model": "parrot-1", "messages": MESSAGES, "stream": True}
        )
    assert caught.value.code == ("llm_cut_off" if finish is None else "llm_unavailable")
    assert "[DONE]" not in raw.text


@pytest.mark.parametrize("stream", [False, True])
async def test_another_provider_responds_before_the_first_token(
    live_database: Database, tmp_path: Path, stream: bool
) -> None:
    second = streams("I did.") if stream else says("I did.")
    async with serving(live_database, tmp_path, fails(500), second) as (server, providers):
        if stream:
            assert text_of(await streamed(server.openai)) == "I did."
        else:
            completion = await server.openai.chat.completions.create(model="parrot-1", messages=MESSAGES)
            assert completion.choices[0].message.content == "I did."
    assert [len(provider.requests) for provider in providers] == [1, 1]


async def test_unknown_model_is_not_found(live_database: Database, tmp_path: Path) -> None:
    async with serving(live_database, tmp_path, says("no")) as (server, _):
        with pytest.raises(openai.NotFoundError) as caught:
            await server.openai.chat.completions.create(model="none", messages=MESSAGES)
    assert caught.value.code == "llm_model_not_found"


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


@covers("llm.scope")
async def test_key_needs_the_scope(live_database: Database, tmp_path: Path) -> None:
    others = [scope for scope in Scope if scope is not Scope.LLM]
    async with serving(live_database, tmp_path, says("no"), scopes=others) as (server, [provider]):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await server.openai.chat.completions.create(model="parrot-1", messages=MESSAGES)
        assert (caught.value.code, caught.value.type) == ("missing_scope", "permission_error")
        with pytest.raises(openai.AuthenticationError) as refused:
            await server.openai.with_options(api_key="wrong").chat.completions.create(
                model="parrot-1", messages=MESSAGES
            )
        assert (refused.value.type, provider.requests) == ("authentication_error", [])


@covers("llm.errors")
async def test_errors_of_the_framework_have_the_member_too(live_database: Database, tmp_path: Path) -> None:
    async with serving(live_database, tmp_path, says("no")) as (server, _):
        for method, path, status in (("GET", "/v1/chat/completions", 405), ("POST", "/v1/none", 404)):
            response = await server.http.request(method, path)
            assert response.status_code == status
            assert response.json()["error"]["type"] == "invalid_request_error"
        assert "error" not in (await server.http.get("/api/v1/none")).json()
