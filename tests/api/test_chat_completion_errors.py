"""Errors of chat completions, with OpenAI's library as the client of a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from bloxserver.llm.provider_leases import ProviderLeases
from bloxserver.models.database import Database
from bloxserver.models.enums import Scope
from tests.api.chat_completions import MESSAGES, serving, streamed, text_of
from tests.api.contract import covers
from tests.api.openai_clients import endpoint
from tests.llm.catalogues import KEY, providers
from tests.llm_server import (
    Reply,
    fails,
    language_model,
    never,
    page,
    says,
)
from tests.llm_streams import streams


async def test_parameters_that_anthropic_does_not_have_are_refused(live_database: Database, tmp_path: Path) -> None:
    async with serving(live_database, tmp_path, says("{}"), kind="anthropic") as (server, [provider]):
        for given in ({"seed": 7}, {"response_format": {"type": "json_object"}}):
            with pytest.raises(openai.BadRequestError, match="does not support") as caught:
                await streamed(server.openai, **given)
            assert caught.value.code == "llm_rejected"
    assert provider.requests == []


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
