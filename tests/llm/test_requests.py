"""Language models, simulated by a server on loopback."""

from __future__ import annotations

import asyncio
import logging
import socket
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, SystemPromptPart, UserPromptPart
from pydantic_ai.tools import ToolDefinition

from bloxserver.clients.model_errors import MAX_REASON_CHARACTERS, ModelError
from bloxserver.llm.gateway import LanguageModels
from bloxserver.model_catalogue import catalogue_of
from bloxserver.settings import Settings
from tests.clients.loopback import answer
from tests.llm.callers import caller
from tests.llm_server import (
    Api,
    LanguageModelServer,
    Reply,
    calls,
    cut,
    fails,
    hangs_up,
    language_model,
    never,
    page,
    says,
    sends,
)

KEY = "sk-canary-key-4711"
PROMPT = "You are the guardian of canary-prompt-0815."
QUESTION = "What do you guard?"
MESSAGES: list[ModelMessage] = [ModelRequest([SystemPromptPart(PROMPT), UserPromptPart(QUESTION)])]
PROVIDERS: tuple[Api, ...] = ("openai", "anthropic")

both_providers = pytest.mark.parametrize("provider", PROVIDERS)


def settings(**given: Any) -> Settings:
    """Remove environment variables that configure models."""
    nothing = {
        "llm_provider": None,
        "llm_base_url": None,
        "llm_api_key": None,
        "llm_model": None,
        "llm_timeout_seconds": 20,
        "llm_providers": None,
        "openai_api_key": None,
        "anthropic_api_key": None,
        "xai_api_key": None,
        "together_api_key": None,
    }
    return Settings(**(nothing | given))


@asynccontextmanager
async def models_with(
    *script: Reply, provider: Api, **given: Any
) -> AsyncIterator[tuple[LanguageModels, LanguageModelServer]]:
    async with language_model(script) as server:
        chosen = {"llm_base_url": server.url, "llm_api_key": KEY, "llm_model": "parrot-1", "llm_provider": provider}
        models = LanguageModels(settings(**(chosen | given)))
        try:
            yield models, server
        finally:
            await models.aclose()


@pytest.mark.parametrize(
    ("given", "model", "named"),
    [
        ({}, None, ["LLM_API_KEY", "LLM_BASE_URL", "LLM_MODEL"]),
        ({"llm_api_key": KEY}, None, ["LLM_MODEL"]),
        ({"llm_model": "parrot-1"}, None, ["LLM_API_KEY", "LLM_BASE_URL"]),
        ({"llm_base_url": "localhost:11434/v1"}, "parrot-1", ["LLM_BASE_URL"]),
        ({"llm_base_url": "https://[::1/v1"}, "parrot-1", ["LLM_BASE_URL"]),
        ({"llm_base_url": f"https://user:{KEY}@models.example.com"}, "parrot-1", ["LLM_BASE_URL"]),
    ],
)
async def test_missing_settings_are_named(given: dict[str, Any], model: str | None, named: list[str]) -> None:
    models = LanguageModels(settings(**given))
    problem = catalogue_of(settings(**given)).problem(model)
    assert problem is not None
    assert [name for name in ("LLM_API_KEY", "LLM_BASE_URL", "LLM_MODEL") if name in problem] == named
    with pytest.raises(ModelError) as caught:
        await models.of(caller()).request(MESSAGES, model=model)
    assert (caught.value.code, caught.value.retryable) == ("llm_not_configured", False)
    assert KEY not in caught.value.message


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ({"llm_api_key": KEY, "llm_model": "parrot-1"}, None),
        ({"llm_api_key": KEY}, "parrot-1"),
        ({"llm_base_url": "http://localhost:11434/v1"}, "parrot-1"),
    ],
)
def test_model_with_a_key_or_a_server_is_sufficient(given: dict[str, Any], model: str | None) -> None:
    assert catalogue_of(settings(**given)).problem(model) is None


@pytest.mark.parametrize(
    ("given", "model", "provider"),
    [
        ({}, "gpt-4o-mini", "openai"),
        ({}, "claude-sonnet-4-5", "anthropic"),
        ({"llm_base_url": "https://api.anthropic.com"}, "any", "anthropic"),
        ({"llm_base_url": "https://api.anthropic.com.example.org"}, "any", "openai"),
        ({"llm_base_url": "https://models.example.com/v1"}, "claude-sonnet-4-5", "openai"),
        ({"llm_base_url": "https://models.example.com", "llm_provider": "anthropic"}, "any", "anthropic"),
        ({"llm_provider": "openai"}, "claude-sonnet-4-5", "openai"),
    ],
)
def test_provider_is_configured_or_derived_from_url_and_model(given: dict[str, Any], model: str, provider: Api) -> None:
    [*routes] = catalogue_of(settings(**{"llm_api_key": KEY, **given})).routes(model)
    assert (routes[0].provider.kind, routes[0].model) == (provider, model)


@both_providers
async def test_all_parts_of_a_request_are_sent(provider: Api) -> None:
    schema = {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}
    tool = ToolDefinition(name="fetch", parameters_json_schema=schema, description="Fetches a page.", strict=False)
    async with models_with(says("A canary.", input_tokens=21, output_tokens=7), provider=provider) as (models, server):
        response = await models.of(caller()).request(
            MESSAGES, model="parrot-2", tools=[tool], temperature=0.5, max_tokens=99
        )
    assert (response.text, response.usage.input_tokens, response.usage.output_tokens) == ("A canary.", 21, 7)
    assert response.provider_url is None
    [asked] = server.requests
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert (asked.api, asked.texts) == (provider, [PROMPT, QUESTION])
    sent = {name: asked.json[name] for name in ("model", "temperature", "max_tokens", "stream")}
    assert sent == {"model": "parrot-2", "temperature": 0.5, "max_tokens": 99, "stream": False}
    [told] = asked.json["tools"]
    told = told["function"] if provider == "openai" else told
    assert (told["name"], told["description"]) == ("fetch", "Fetches a page.")
    assert told["parameters" if provider == "openai" else "input_schema"] == schema


@both_providers
async def test_unset_parameters_are_not_sent(provider: Api) -> None:
    async with models_with(says("Hello."), provider=provider) as (models, server):
        await models.of(caller()).request(MESSAGES)
    sent = server.requests[0].json
    assert sent["model"] == "parrot-1"
    assert not {"temperature", "tools", "tool_choice", "max_completion_tokens"} & sent.keys()
    # Anthropic's API requires max_tokens.
    assert sent.get("max_tokens") == (4096 if provider == "anthropic" else None)


@both_providers
async def test_response_has_all_tool_calls(provider: Api) -> None:
    reply = calls(("fetch", {"url": "a"}), ("fetch", {"url": "b"}), text="Let me look.")
    async with models_with(reply, provider=provider) as (models, _):
        response = await models.of(caller()).request(MESSAGES)
    assert response.text == "Let me look."
    assert [(call.tool_name, call.args_as_dict()) for call in response.tool_calls] == [
        ("fetch", {"url": "a"}),
        ("fetch", {"url": "b"}),
    ]


LONG = "a" * 1000
FAULTS: list[tuple[str, Reply, str, bool]] = [
    ("429", fails(429), "llm_rate_limited", True),
    ("500", fails(500), "llm_unavailable", True),
    ("503", fails(503), "llm_unavailable", True),
    ("529", fails(529, type="overloaded_error"), "llm_unavailable", True),
    ("408", fails(408), "llm_unavailable", True),
    ("401", fails(401, f"Incorrect API key: {KEY}"), "llm_unauthorized", False),
    ("403", fails(403, PROMPT), "llm_unauthorized", False),
    ("402", fails(402), "llm_quota_exceeded", False),
    ("404", fails(404, type="not_found_error"), "llm_model_not_found", False),
    ("400", fails(400, LONG), "llm_rejected", False),
    ("the prompt quoted", fails(400, f"cannot read '{PROMPT[:30]}'"), "llm_rejected", False),
    ("the question quoted", fails(422, f"input={QUESTION}"), "llm_rejected", False),
    ("the key quoted", fails(400, f"cannot use {KEY}"), "llm_rejected", False),
    (
        "redirect",
        lambda api: answer(status="307 Moved", headers={"Location": "/elsewhere"}),
        "llm_unusable_answer",
        True,
    ),
    ("web page", page(), "llm_unusable_answer", True),
    ("web page as JSON", sends("<html></html>"), "llm_unusable_answer", True),
    ("no answer in it", sends('{"choices": [], "content": []}'), "llm_unusable_answer", True),
    ("null", sends("null"), "llm_unusable_answer", True),
    ("endless depth", sends("[" * 100_000), "llm_unusable_answer", True),
    ("cut by length", cut(says(LONG), "length"), "llm_cut_off", True),
    ("cut chunks", cut(says(LONG), "chunked"), "llm_cut_off", True),
    ("cut text", cut(says(LONG), "text"), "llm_cut_off", True),
    ("hung up", hangs_up(), "llm_cut_off", True),
    ("broken off", says("I", finish="error"), "llm_cut_off", True),
    ("too long", says("I", finish="length"), "llm_too_long", False),
    ("refused", says("", finish="content_filter"), "llm_refused", False),
]


@both_providers
@pytest.mark.parametrize(("fault", "code", "retryable"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS])
async def test_errors_have_distinct_codes_without_key_or_prompt(
    provider: Api, fault: Reply, code: str, retryable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with models_with(fault, says("the second attempt"), provider=provider) as (models, server):
        with pytest.raises(ModelError) as caught:
            await models.of(caller()).request(MESSAGES)
    error = caught.value
    assert (error.code, error.retryable, error.retry_after) == (code, retryable, None)
    assert len(server.requests) == 1
    for told in (error.message, "".join(traceback.format_exception(error)), caplog.text):
        assert KEY not in told
        assert "canary-prompt" not in told
        assert QUESTION not in told
    assert len(error.message) < MAX_REASON_CHARACTERS + 100


async def test_exhausted_credit_is_not_retryable() -> None:
    async with models_with(fails(429, code="insufficient_quota"), provider="openai") as (models, _):
        with pytest.raises(ModelError) as caught:
            await models.of(caller()).request(MESSAGES)
    assert (caught.value.code, caught.value.retryable) == ("llm_quota_exceeded", False)


@pytest.mark.parametrize(
    ("provider", "reply"),
    [
        ("openai", fails(400, "This model's maximum context length is 10 tokens", code="context_length_exceeded")),
        ("anthropic", fails(400, "prompt is too long: 11 tokens > 10 maximum")),
    ],
)
async def test_exceeded_context_window_has_its_own_code(provider: Api, reply: Reply) -> None:
    async with models_with(reply, provider=provider) as (models, _):
        with pytest.raises(ModelError) as caught:
            await models.of(caller()).request(MESSAGES)
    assert (caught.value.code, caught.value.retryable) == ("llm_context_exceeded", False)


@both_providers
async def test_retry_after_of_the_server_is_passed_on(provider: Api) -> None:
    async with models_with(fails(429, headers={"Retry-After": "17"}), provider=provider) as (models, _):
        with pytest.raises(ModelError) as caught:
            await models.of(caller()).request(MESSAGES)
    assert caught.value.retry_after == 17


@both_providers
async def test_rejection_contains_the_message_of_the_server(provider: Api) -> None:
    async with models_with(fails(400, "temperature:\x1brange\nis 0..1"), provider=provider) as (models, _):
        with pytest.raises(ModelError, match=r"\(status 400\): temperature: range is 0\.\.1$"):
            await models.of(caller()).request(MESSAGES)


@both_providers
async def test_unusable_response_has_token_counts(provider: Api) -> None:
    reply = says("I", finish="length", input_tokens=30, output_tokens=4)
    async with models_with(reply, provider=provider) as (models, _):
        with pytest.raises(ModelError) as caught:
            await models.of(caller()).request(MESSAGES)
    assert (caught.value.input_tokens, caught.value.output_tokens) == (30, 4)


async def test_response_without_a_finish_reason_is_accepted() -> None:
    choice = '{"index": 0, "message": {"role": "assistant", "content": "Hello."}}'
    body = f'{{"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [{choice}]}}'
    async with models_with(sends(body), provider="openai") as (models, _):
        assert (await models.of(caller()).request(MESSAGES)).text == "Hello."


@both_providers
async def test_unresponsive_model_times_out(provider: Api) -> None:
    async with models_with(never(), provider=provider, llm_timeout_seconds=0.2) as (models, server):
        with pytest.raises(ModelError, match=r"within 0\.2 seconds") as caught:
            await models.of(caller()).request(MESSAGES)
    assert (caught.value.code, caught.value.retryable) == ("llm_timeout", True)
    assert len(server.requests) == 1


@both_providers
async def test_request_can_be_cancelled(provider: Api) -> None:
    async with models_with(never(), provider=provider) as (models, server):
        request = asyncio.create_task(models.of(caller()).request(MESSAGES))
        async with asyncio.timeout(10):
            await server.was_asked.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request


@both_providers
async def test_unreachable_server_is_retryable(provider: Api) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    models = LanguageModels(settings(llm_base_url=f"http://127.0.0.1:{port}/v1", llm_model="m", llm_provider=provider))
    with pytest.raises(ModelError) as caught:
        await models.of(caller()).request(MESSAGES)
    await models.aclose()
    assert (caught.value.code, caught.value.retryable) == ("llm_unreachable", True)


@both_providers
async def test_environment_variables_of_the_libraries_are_ignored(
    provider: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, "sk-of-another-server")
    keys = {"openai_api_key": "sk-of-another-server", "anthropic_api_key": "sk-of-another-server", "llm_api_key": None}
    async with models_with(says("Hello."), provider=provider, **keys) as (models, server):
        await models.of(caller()).request(MESSAGES)
    assert "sk-of-another-server" not in str(server.requests[0].headers)


@both_providers
async def test_requests_reuse_connections(provider: Api) -> None:
    async with models_with(*[says("Hello.")] * 3, provider=provider) as (models, server):
        for model in ("parrot-1", "parrot-2", "parrot-3"):
            await models.of(caller()).request(MESSAGES, model=model)
        assert server.server.connections == 1


@both_providers
async def test_logs_do_not_contain_the_key(provider: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with models_with(says("Hello."), fails(401), fails(500), provider=provider) as (models, server):
        await models.of(caller()).request(MESSAGES)
        for _ in range(2):
            with pytest.raises(ModelError):
                await models.of(caller()).request(MESSAGES)
    assert len(server.requests) == 3
    assert KEY not in caplog.text


@both_providers
async def test_key_that_the_server_repeats_is_replaced(provider: Api) -> None:
    told = f"You sent Bearer {KEY.upper()}."
    script = (says(told), calls(("save", {"text": told, "list": [KEY.encode().hex()]})), fails(400, f"no: {KEY[::-1]}"))
    async with models_with(*script, provider=provider) as (models, _):
        assert (await models.of(caller()).request(MESSAGES)).text == "You sent Bearer [setting LLM_API_KEY]."
        tools = [ToolDefinition(name="save", parameters_json_schema={"type": "object"})]
        (call,) = (await models.of(caller()).request(MESSAGES, tools=tools)).tool_calls
        mark = "[setting LLM_API_KEY]"
        assert call.args_as_dict() == {"text": f"You sent Bearer {mark}.", "list": [mark]}
        with pytest.raises(ModelError) as caught:
            await models.of(caller()).request(MESSAGES)
        assert caught.value.message.endswith(f": no: {mark}")
