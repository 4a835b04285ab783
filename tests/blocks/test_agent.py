"""The agent, with a language model on loopback that follows a script."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic import JsonValue, SecretStr

from bloxserver.blocks import http_request, transform
from bloxserver.blocks.agent import MAX_RESULT_BYTES, MAX_STATE_BYTES, agent
from bloxserver.blocks.base import AgentContext, BlockContext, BlockError, Tool
from bloxserver.blocks.tools import tool_of
from bloxserver.clients.llm import LanguageModels
from bloxserver.settings import Settings
from tests.llm_server import Api, LanguageModelServer, Reply, calls, cut, fails, language_model, page, says, sends

KEY = "sk-canary-key-4711"
PROMPT = "You answer briefly. {{ payload.secret }}"
QUESTION = "What is on the page?"
FETCH = tool_of("fetch.page", "Fetches a page.", http_request.block, http_request.HttpRequestConfig(), ())
SHAPE = tool_of("shape", "Shapes anything.", transform.block, transform.TransformConfig(expression="payload"), ())

both_providers = pytest.mark.parametrize("provider", ["openai", "anthropic"])

Respond = Callable[[JsonValue], Awaitable[JsonValue]]


@dataclass
class Memory:
    """A conversation, with what the engine would have in its rows."""

    respond: Mapping[str, Respond] = field(default_factory=dict)
    state: JsonValue = None
    answered: dict[str, JsonValue] = field(default_factory=dict)
    kept: list[JsonValue] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    called: list[tuple[str, JsonValue, str]] = field(default_factory=list)

    async def keep(self, state: JsonValue, *, input_tokens: int, output_tokens: int) -> None:
        self.state = json.loads(json.dumps(state))
        self.kept.append(self.state)
        self.tokens.append((input_tokens, output_tokens))

    async def call(self, tool: Tool, payload: JsonValue, call: str) -> JsonValue:
        if call not in self.answered:
            self.called.append((tool.listener, payload, call))
            self.answered[call] = await self.respond[tool.listener](payload)
        return self.answered[call]


async def fetched(payload: JsonValue) -> JsonValue:
    assert isinstance(payload, dict)
    return {"status": 200, "body": f"page {payload.get('url')}"}


async def refused(payload: JsonValue) -> JsonValue:
    raise BlockError("http_error_status", "example.com answered 404 Not Found")


@asynccontextmanager
async def language_models(
    *script: Reply, provider: Api = "openai"
) -> AsyncIterator[tuple[LanguageModels, LanguageModelServer]]:
    async with language_model(script) as server:
        settings = Settings(
            llm_provider=provider,
            llm_base_url=server.url,
            llm_api_key=SecretStr(KEY),
            llm_model="parrot-1",
            llm_timeout_seconds=20,
        )
        models = LanguageModels(settings)
        yield models, server
        await models.aclose()


async def answer_of(
    context: BlockContext,
    models: LanguageModels,
    memory: Memory,
    payload: JsonValue = QUESTION,
    tools: tuple[Tool, ...] = (FETCH, SHAPE),
    **config: Any,
) -> JsonValue:
    given = agent.config.model_validate({"prompt": PROMPT} | config)
    world = replace(context, agent=AgentContext(models, tools, memory))
    answer = await agent.handler(agent.payload.model_validate(payload), given, world)
    assert isinstance(answer, dict)
    return answer


@both_providers
async def test_agent_calls_tools_until_the_model_answers(context: BlockContext, provider: Api) -> None:
    memory = Memory({"fetch.page": fetched, "shape": fetched})
    script = [
        calls(("fetch_page", {"url": "a"}), text="Let me look.", input_tokens=10, output_tokens=5),
        calls(("fetch_page", {"url": "b"}), ("shape", {"input": {"url": "c"}}), input_tokens=20, output_tokens=6),
        says("Two pages.", input_tokens=30, output_tokens=7),
    ]
    async with language_models(*script, provider=provider) as (models, server):
        assert await answer_of(context, models, memory, model="parrot-2", temperature=0) == {"text": "Two pages."}
    assert sorted(memory.called, key=lambda call: call[2]) == [
        ("fetch.page", {"url": "a"}, "1.1"),
        ("fetch.page", {"url": "b"}, "2.1"),
        ("shape", {"url": "c"}, "2.2"),
    ]
    assert memory.tokens == [(10, 5), (20, 6), (30, 7)]
    pages = [f'{{"status":200,"body":"page {name}"}}' for name in "abc"]
    assert server.requests[2].texts == [PROMPT, QUESTION, "Let me look.", *pages]
    assert [(asked.json["model"], asked.json["temperature"]) for asked in server.requests] == [("parrot-2", 0)] * 3


@both_providers
async def test_model_receives_tool_names_descriptions_and_schemas(context: BlockContext, provider: Api) -> None:
    async with language_models(says("Hello."), provider=provider) as (models, server):
        await answer_of(context, models, Memory())
    told = server.requests[0].json["tools"]
    if provider == "openai":
        shown = [(tool["function"]["name"], tool["function"]["parameters"]) for tool in told]
    else:
        shown = [(tool["name"], tool["input_schema"]) for tool in told]
    assert [name for name, _ in shown] == ["fetch_page", "shape"]
    assert [schema["required"] for _, schema in shown] == [["url"], ["input"]]
    assert "additionalProperties" not in shown[0][1]


async def test_tool_calls_of_one_answer_run_concurrently(context: BlockContext) -> None:
    together = asyncio.Barrier(3)

    async def wait_for_the_others(payload: JsonValue) -> JsonValue:
        await together.wait()
        return payload

    memory = Memory({"fetch.page": wait_for_the_others})
    script = [calls(*[("fetch_page", {"url": name}) for name in "abc"]), says("Done.")]
    async with language_models(*script) as (models, server), asyncio.timeout(20):
        assert await answer_of(context, models, memory) == {"text": "Done."}
    assert server.requests[1].texts[2:] == ['{"url":"a"}', '{"url":"b"}', '{"url":"c"}']


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ("How are you?", "How are you?"),
        ({"text": "How are you?"}, "How are you?"),
        ({"text": "How are you?", "name": "Ada"}, '{"text":"How are you?","name":"Ada"}'),
        ({"text": 1}, '{"text":1}'),
        (["ä", None], '["ä",null]'),
        ("{{ secrets.KEY }}", "{{ secrets.KEY }}"),
    ],
    ids=str,
)
async def test_model_receives_the_message_as_user_prompt(context: BlockContext, payload: JsonValue, told: str) -> None:
    async with language_models(says("Well.")) as (models, server):
        await answer_of(context, models, Memory(), payload)
    assert server.requests[0].texts == [PROMPT, told]


SCRIPT = [
    calls(("fetch_page", {"url": "a"})),
    calls(("fetch_page", {"url": "b"}), ("fetch_page", {"url": "c"})),
    says("Three pages."),
]


@both_providers
@pytest.mark.parametrize("kept", [1, 2, 3])
async def test_interrupted_agent_resumes_from_stored_state_without_repeated_requests(
    context: BlockContext, provider: Api, kept: int
) -> None:
    whole = Memory({"fetch.page": fetched})
    async with language_models(*SCRIPT, provider=provider) as (models, before):
        await answer_of(context, models, whole)
    # The calls of the last kept answer were interrupted half-way.
    answered = {call: answer for call, answer in whole.answered.items() if call in ("1.1", "2.1")}
    resumed = Memory({"fetch.page": fetched}, state=whole.kept[kept - 1], answered=answered)
    async with language_models(*SCRIPT[kept:], provider=provider) as (models, server):
        assert await answer_of(context, models, resumed) == {"text": "Three pages."}
    assert [asked.texts for asked in server.requests] == [asked.texts for asked in before.requests[kept:]]
    assert [call for _, _, call in resumed.called] == (["2.2"] if kept < 3 else [])
    assert resumed.tokens == whole.tokens[kept:]


async def test_model_answer_is_stored_before_its_tool_calls_run(context: BlockContext) -> None:
    async def die(payload: JsonValue) -> JsonValue:
        raise ConnectionAbortedError("the worker died")

    memory = Memory({"fetch.page": die})
    async with language_models(*SCRIPT[1:]) as (models, server):
        with pytest.raises(ConnectionAbortedError):
            await answer_of(context, models, memory)
        memory.respond = {"fetch.page": fetched}
        assert await answer_of(context, models, memory) == {"text": "Three pages."}
    assert len(server.requests) == 2


async def test_engine_exception_in_a_tool_call_cancels_other_calls_and_the_agent(context: BlockContext) -> None:
    ended = asyncio.Event()

    async def respond(payload: JsonValue) -> JsonValue:
        if payload == {"url": "a"}:
            raise ConnectionAbortedError("the lease is lost")
        try:
            return await asyncio.Event().wait()
        finally:
            ended.set()

    async with language_models(calls(("fetch_page", {"url": "b"}), ("fetch_page", {"url": "a"}))) as (models, _):
        with pytest.raises(ConnectionAbortedError):
            await answer_of(context, models, Memory({"fetch.page": respond}))
    assert ended.is_set()


@both_providers
async def test_tool_failure_is_reported_to_the_model(context: BlockContext, provider: Api) -> None:
    script = [calls(("fetch_page", {"url": "a"})), says("It is gone.")]
    async with language_models(*script, provider=provider) as (models, server):
        assert await answer_of(context, models, Memory({"fetch.page": refused})) == {"text": "It is gone."}
    reason = "http_error_status: example.com answered 404 Not Found"
    told = server.requests[1].json["messages"][-1]
    if provider == "openai":
        assert json.loads(told["content"]) == {"error": reason}
    else:
        assert told["content"][0]["is_error"]
        assert server.requests[1].texts[-1] == reason


POST = tool_of(
    "post",
    "Posts.",
    http_request.block,
    http_request.HttpRequestConfig(url="https://example.com", method="POST"),
    (),
)
GET = tool_of("get", "Gets.", http_request.block, http_request.HttpRequestConfig(url="https://example.com"), ())


@both_providers
@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (("fetch", {}), "the tools are: fetch_page, shape"),
        (("no such tool!", {}), "the tools are: fetch_page, shape"),
        (("", {}), "the tools are: fetch_page, shape"),
        (("fetch_page", '{"url": "a'), "not valid JSON"),
        (("fetch_page", '{"url": NaN}'), "not valid JSON"),
        (("fetch_page", '{"url": "\\ud800"}'), "not valid JSON"),
        (("fetch_page", " "), "not valid JSON"),
        (("fetch_page", "[" * 1000), "not valid JSON"),
        (("fetch_page", '{"url": 1e999}'), "not valid JSON"),
        (("fetch_page", '{"url": ' + "9" * 40 + "}"), "more than 64 bits"),
        (("fetch_page", "[1]"), "must be a JSON object"),
        (("fetch_page", "[]"), "must be a JSON object"),
        (("fetch_page", "null"), "must be a JSON object"),
        (("shape", {"value": 1}), "remove the arguments that this tool does not accept: value; it accepts input"),
        (("shape", {}), "the arguments must have"),
        (("get", {"url": "https://evil.example"}), "does not accept: url; it accepts no arguments"),
        (("post", {"input": 1, "method": "DELETE"}), "does not accept: method; it accepts input"),
        (("post", {"url": "https://evil.example", "body": "x"}), "does not accept: url, body; it accepts input"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_invalid_tool_call_is_reported_to_the_model(
    context: BlockContext, provider: Api, wanted: tuple[str, dict[str, Any] | str], told: str
) -> None:
    memory = Memory({"fetch.page": fetched})
    script = [calls(wanted, ("fetch_page", {"url": "a"})), calls(("fetch_page", {"url": "b"})), says("Done.")]
    if provider == "anthropic" and isinstance(wanted[1], str):
        script[0] = _raw(provider, wanted[1], ("fetch_page", {"url": "a"}))
    tools = (FETCH, SHAPE, POST, GET)
    async with language_models(*script, provider=provider) as (models, server):
        assert await answer_of(context, models, memory, tools=tools) == {"text": "Done."}
    assert told in server.requests[1].texts[2]
    assert [call for _, _, call in memory.called] == ["1.2", "2.1"]


def _raw(
    provider: Api, given: JsonValue, *others: tuple[str, JsonValue], ids: Sequence[JsonValue] = ("c1", "c2")
) -> Reply:
    """Calls of `fetch_page` as a server sends them that does not keep to the API."""
    wanted = [("fetch_page", given), *others]
    if provider == "openai":
        made: list[JsonValue] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for (name, arguments), call_id in zip(wanted, ids, strict=False)
        ]
        message = {"role": "assistant", "content": None, "tool_calls": made}
        choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        return sends(json.dumps(body))
    blocks = [
        {"type": "tool_use", "id": call_id, "name": name, "input": arguments}
        for (name, arguments), call_id in zip(wanted, ids, strict=False)
    ]
    members = {"id": "1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use"}
    return sends(json.dumps(members | {"content": blocks, "usage": {"input_tokens": 3, "output_tokens": 2}}))


@both_providers
@pytest.mark.parametrize("given", [[], None, 1, True, ["a"], "", {}, {"url": "a"}], ids=repr)
async def test_tool_arguments_of_wrong_type_are_reported_to_the_model(
    context: BlockContext, provider: Api, given: JsonValue
) -> None:
    memory = Memory({"fetch.page": fetched})
    async with language_models(_raw(provider, given), says("Done."), provider=provider) as (models, server):
        assert await answer_of(context, models, memory) == {"text": "Done."}
    # A text may be empty, and Anthropic's arguments are an object.
    if given == "" or (provider == "anthropic" and isinstance(given, dict)):
        assert memory.called == [("fetch.page", given or {}, "1.1")]
    else:
        assert memory.called == []
        assert "invalid_arguments: the arguments must be a JSON object" in server.requests[1].texts[2]


@pytest.mark.parametrize(
    "call", [{}, None, {"id": 1, "function": None}, {"id": "x", "function": {"name": 5}}], ids=repr
)
async def test_incomplete_tool_call_is_reported_to_the_model(context: BlockContext, call: JsonValue) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    async with language_models(sends(json.dumps(body)), says("Done.")) as (models, server):
        assert await answer_of(context, models, Memory()) == {"text": "Done."}
    assert "unknown_tool" in server.requests[1].texts[2]


@both_providers
async def test_tool_calls_with_equal_ids_get_unique_ids(context: BlockContext, provider: Api) -> None:
    given: JsonValue = '{"url": "a"}' if provider == "openai" else {"url": "a"}
    reply = _raw(provider, given, ("fetch_page", given), ids=("same", "same"))
    memory = Memory({"fetch.page": fetched})
    async with language_models(reply, says("Done."), provider=provider) as (models, server):
        assert await answer_of(context, models, memory) == {"text": "Done."}
    assert [call for _, _, call in memory.called] == ["1.1", "1.2"]
    sent = server.requests[1].json["messages"]
    if provider == "openai":
        ids = [one["tool_call_id"] for one in sent if one["role"] == "tool"]
    else:
        ids = [one["tool_use_id"] for one in sent[-1]["content"]]
    assert len(set(ids)) == 2


async def test_tool_call_without_arguments_sends_an_empty_object(context: BlockContext) -> None:
    memory = Memory({"fetch.page": fetched})
    async with language_models(calls(("fetch_page", "")), says("Done.")) as (models, _):
        await answer_of(context, models, memory)
    assert memory.called == [("fetch.page", {}, "1.1")]


async def test_long_tool_result_is_truncated_with_a_note(context: BlockContext) -> None:
    async def much(payload: JsonValue) -> JsonValue:
        return "ä" * MAX_RESULT_BYTES

    async with language_models(calls(("fetch_page", {})), says("Much.")) as (models, server):
        await answer_of(context, models, Memory({"fetch.page": much}))
    told = server.requests[1].texts[2]
    assert told.startswith("ä" * (MAX_RESULT_BYTES // 2) + "\n[truncated")
    assert f"of {2 * MAX_RESULT_BYTES} bytes" in told
    assert len(told) < MAX_RESULT_BYTES


async def test_nul_characters_are_replaced(context: BlockContext) -> None:
    memory = Memory({"fetch.page": fetched})
    script = [calls(("fetch_page", '{"url": "a\\u0000", "path": "\\\\u0000"}'), text="one\0"), says("a\0b \\u0000")]
    async with language_models(*script) as (models, _):
        assert await answer_of(context, models, memory) == {"text": "a\ufffdb \\u0000"}
    assert memory.called == [("fetch.page", {"url": "a\ufffd", "path": "\\u0000"}, "1.1")]
    assert "\0" not in str(memory.kept)
    assert "one\ufffd" in str(memory.kept)


async def test_lone_surrogate_in_answer_fails_and_records_tokens(context: BlockContext) -> None:
    content = '[{"type": "text", "text": "\\ud800"}]'
    members = '"id": "1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"'
    reply = sends(f'{{{members}, "content": {content}, "usage": {{"input_tokens": 3, "output_tokens": 2}}}}')
    memory = Memory()
    async with language_models(reply, provider="anthropic") as (models, _):
        with pytest.raises(BlockError) as caught:
            await answer_of(context, models, memory)
    assert caught.value.code == "llm_unusable_answer"
    assert (memory.kept, memory.tokens) == ([None], [(3, 2)])


async def test_max_calls_stops_the_agent_before_further_tool_calls(context: BlockContext) -> None:
    memory = Memory({"fetch.page": fetched})
    script = [calls(("fetch_page", {})) for _ in range(5)]
    async with language_models(*script) as (models, server):
        with pytest.raises(BlockError, match="after 3 requests") as caught:
            await answer_of(context, models, memory, max_calls=3)
    assert (caught.value.code, caught.value.retryable) == ("agent_call_limit", False)
    assert (len(server.requests), len(memory.called)) == (3, 2)


async def test_max_total_tokens_stops_the_agent(context: BlockContext) -> None:
    memory = Memory({"fetch.page": fetched})
    script = [calls(("fetch_page", {}), input_tokens=40, output_tokens=10) for _ in range(5)]
    async with language_models(*script) as (models, server):
        with pytest.raises(BlockError, match="after 100 tokens") as caught:
            await answer_of(context, models, memory, max_total_tokens=100)
    assert (caught.value.code, caught.value.retryable) == ("agent_token_limit", False)
    assert len(server.requests) == 2


async def test_limits_count_calls_before_an_interruption(context: BlockContext) -> None:
    memory = Memory({"fetch.page": fetched})
    script = [calls(("fetch_page", {})), fails(500), calls(("fetch_page", {})), calls(("fetch_page", {}))]
    async with language_models(*script) as (models, server):
        with pytest.raises(BlockError, match="status 500"):
            await answer_of(context, models, memory, max_calls=2)
        with pytest.raises(BlockError, match="after 2 requests"):
            await answer_of(context, models, memory, max_calls=2)
    assert len(server.requests) == 3
    assert [call for _, _, call in memory.called] == ["1.1"]


async def test_final_answer_that_reaches_the_token_limit_is_accepted(context: BlockContext) -> None:
    async with language_models(says("Done.", input_tokens=500)) as (models, _):
        answer = await answer_of(context, models, Memory(), max_calls=1, max_total_tokens=100)
    assert answer == {"text": "Done."}


async def test_conversation_that_exceeds_the_state_limit_fails(context: BlockContext) -> None:
    async def much(payload: JsonValue) -> JsonValue:
        return "ä" * (MAX_RESULT_BYTES // 2)

    memory = Memory({"fetch.page": much})
    script = [
        calls(*[("fetch_page", {})] * (MAX_STATE_BYTES // MAX_RESULT_BYTES + 1)),
        says("Much.", input_tokens=60, output_tokens=1),
    ]
    async with language_models(*script) as (models, _):
        with pytest.raises(BlockError) as caught:
            await answer_of(context, models, memory)
    assert (caught.value.code, caught.value.retryable) == ("llm_too_long", False)
    assert memory.tokens == [(10, 5), (60, 1)]
    assert memory.kept[1] == memory.kept[0]


@both_providers
@pytest.mark.parametrize(
    ("fault", "code", "retryable", "retry_after"),
    [
        (fails(429, headers={"Retry-After": "17"}), "llm_rate_limited", True, 17),
        (fails(500), "llm_unavailable", True, None),
        (fails(401, f"Incorrect key {KEY}"), "llm_unauthorized", False, None),
        (fails(400, f"cannot use {KEY}"), "llm_rejected", False, None),
        (page(), "llm_unusable_answer", True, None),
        (cut(says("Two pages."), "length"), "llm_cut_off", True, None),
        (cut(says("Two pages."), "chunked"), "llm_cut_off", True, None),
        (says("Two", finish="length"), "llm_too_long", False, None),
        (says("", finish="content_filter"), "llm_refused", False, None),
    ],
    ids=["429", "500", "401", "400", "page", "cut length", "cut chunked", "too long", "refused"],
)
async def test_next_attempt_after_a_model_error_repeats_no_finished_request(
    context: BlockContext,
    provider: Api,
    fault: Reply,
    code: str,
    retryable: bool,
    retry_after: float | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    memory = Memory({"fetch.page": fetched})
    script = [calls(("fetch_page", {"url": "a"})), fault, says("One page.")]
    async with language_models(*script, provider=provider) as (models, server):
        with pytest.raises(BlockError) as caught:
            await answer_of(context, models, memory)
        error = caught.value
        assert (error.code, error.retryable, error.retry_after) == (code, retryable, retry_after)
        assert await answer_of(context, models, memory) == {"text": "One page."}
    assert len(server.requests) == 3
    assert [call for _, _, call in memory.called] == ["1.1"]
    # An answer that cannot be used was paid for all the same.
    assert len(memory.tokens) == (3 if code in ("llm_too_long", "llm_refused") else 2)
    told = (error.message, caplog.text, str(memory.kept))
    assert not [text for text in told if KEY in text]


async def test_agent_without_configured_model_reports_the_missing_setting(context: BlockContext) -> None:
    models = LanguageModels(Settings(llm_base_url=None, llm_api_key=None, llm_model=None))
    with pytest.raises(BlockError, match="LLM_API_KEY") as caught:
        await answer_of(context, models, Memory())
    assert (caught.value.code, caught.value.retryable) == ("llm_not_configured", False)
