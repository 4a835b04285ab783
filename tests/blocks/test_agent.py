"""The agent: its conversation with the model, its limits and its errors."""

from __future__ import annotations

import asyncio
import logging

import pytest
from pydantic import JsonValue

from bloxserver.blocks.agent_calls import MAX_RESULT_BYTES, MAX_STATE_BYTES
from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.llm.gateway import LanguageModels
from bloxserver.settings import Settings
from tests.blocks.agents import (
    KEY,
    PROMPT,
    QUESTION,
    StoredConversation,
    answer_of,
    both_providers,
    fetched,
    language_models,
)
from tests.llm.callers import caller
from tests.llm_server import Api, Reply, calls, cut, fails, page, says
from tests.llm_streams import streams


@both_providers
async def test_agent_calls_tools_until_the_model_answers(context: BlockContext, provider: Api) -> None:
    memory = StoredConversation({"fetch.page": fetched, "shape": fetched})
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
        await answer_of(context, models, StoredConversation())
    tools = server.requests[0].json["tools"]
    if provider == "openai":
        shown = [(tool["function"]["name"], tool["function"]["parameters"]) for tool in tools]
    else:
        shown = [(tool["name"], tool["input_schema"]) for tool in tools]
    assert [name for name, _ in shown] == ["fetch_page", "shape"]
    assert [schema["required"] for _, schema in shown] == [["url"], ["input"]]
    assert "additionalProperties" not in shown[0][1]


async def test_tool_calls_of_one_answer_run_concurrently(context: BlockContext) -> None:
    together = asyncio.Barrier(3)

    async def wait_for_the_others(payload: JsonValue) -> JsonValue:
        await together.wait()
        return payload

    memory = StoredConversation({"fetch.page": wait_for_the_others})
    script = [calls(*[("fetch_page", {"url": name}) for name in "abc"]), says("Done.")]
    async with language_models(*script) as (models, server), asyncio.timeout(20):
        assert await answer_of(context, models, memory) == {"text": "Done."}
    assert server.requests[1].texts[2:] == ['{"url":"a"}', '{"url":"b"}', '{"url":"c"}']


@pytest.mark.parametrize(
    ("payload", "prompt"),
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
async def test_model_receives_the_message_as_user_prompt(
    context: BlockContext, payload: JsonValue, prompt: str
) -> None:
    async with language_models(says("Well.")) as (models, server):
        await answer_of(context, models, StoredConversation(), payload)
    assert server.requests[0].texts == [PROMPT, prompt]


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
    whole = StoredConversation({"fetch.page": fetched})
    async with language_models(*SCRIPT, provider=provider) as (models, before):
        await answer_of(context, models, whole)
    # The tool calls of the last stored answer were interrupted.
    answered = {call: answer for call, answer in whole.answered.items() if call in ("1.1", "2.1")}
    resumed = StoredConversation({"fetch.page": fetched}, state=whole.kept[kept - 1], answered=answered)
    async with language_models(*SCRIPT[kept:], provider=provider) as (models, server):
        assert await answer_of(context, models, resumed) == {"text": "Three pages."}
    assert [asked.texts for asked in server.requests] == [asked.texts for asked in before.requests[kept:]]
    assert [call for _, _, call in resumed.called] == (["2.2"] if kept < 3 else [])
    assert resumed.tokens == whole.tokens[kept:]


async def test_model_answer_is_stored_before_its_tool_calls_run(context: BlockContext) -> None:
    async def die(payload: JsonValue) -> JsonValue:
        raise ConnectionAbortedError("the worker died")

    memory = StoredConversation({"fetch.page": die})
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
            await answer_of(context, models, StoredConversation({"fetch.page": respond}))
    assert ended.is_set()


async def test_lone_surrogate_in_answer_fails_and_records_tokens(context: BlockContext) -> None:
    memory = StoredConversation()
    async with language_models(streams("\ud800", usage=(3, 2)), provider="anthropic") as (models, _):
        with pytest.raises(BlockError) as caught:
            await answer_of(context, models, memory)
    assert caught.value.code == "llm_unusable_answer"
    assert (memory.kept, memory.tokens) == ([None], [(3, 2)])


async def test_max_calls_stops_the_agent_before_further_tool_calls(context: BlockContext) -> None:
    memory = StoredConversation({"fetch.page": fetched})
    script = [calls(("fetch_page", {})) for _ in range(5)]
    async with language_models(*script) as (models, server):
        with pytest.raises(BlockError, match="after 3 requests") as caught:
            await answer_of(context, models, memory, max_calls=3)
    assert (caught.value.code, caught.value.retryable) == ("agent_call_limit", False)
    assert (len(server.requests), len(memory.called)) == (3, 2)


async def test_max_total_tokens_stops_the_agent(context: BlockContext) -> None:
    memory = StoredConversation({"fetch.page": fetched})
    script = [calls(("fetch_page", {}), input_tokens=40, output_tokens=10) for _ in range(5)]
    async with language_models(*script) as (models, server):
        with pytest.raises(BlockError, match="after 100 tokens") as caught:
            await answer_of(context, models, memory, max_total_tokens=100)
    assert (caught.value.code, caught.value.retryable) == ("agent_token_limit", False)
    assert len(server.requests) == 2


async def test_limits_count_calls_before_an_interruption(context: BlockContext) -> None:
    memory = StoredConversation({"fetch.page": fetched})
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
        answer = await answer_of(context, models, StoredConversation(), max_calls=1, max_total_tokens=100)
    assert answer == {"text": "Done."}


async def test_answers_from_the_cache_use_no_tokens(context: BlockContext) -> None:
    first, second = (StoredConversation({"fetch.page": fetched}) for _ in range(2))
    async with language_models(calls(("fetch_page", {}), input_tokens=500), says("Done.")) as (models, server):
        answers = [
            await answer_of(context, models, memory, temperature=0, max_total_tokens=limit)
            for memory, limit in ((first, 1_000), (second, 1))
        ]
    assert answers == [{"text": "Done."}] * 2
    assert len(server.requests) == 2
    assert [call for _, _, call in second.called] == ["1.1"]
    assert [sum(map(sum, memory.tokens)) for memory in (first, second)] == [520, 0]


async def test_agent_without_a_cache_asks_the_model_again(context: BlockContext) -> None:
    async with language_models(says("First."), says("Second.")) as (models, _):
        answers = [await answer_of(context, models, StoredConversation(), temperature=0, cache=False) for _ in range(2)]
    assert answers == [{"text": "First."}, {"text": "Second."}]


async def test_conversation_that_exceeds_the_state_limit_fails(context: BlockContext) -> None:
    async def much(payload: JsonValue) -> JsonValue:
        return "ä" * (MAX_RESULT_BYTES // 2)

    memory = StoredConversation({"fetch.page": much})
    script = [
        calls(*[("fetch_page", {"url": str(number)}) for number in range(MAX_STATE_BYTES // MAX_RESULT_BYTES + 1)]),
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
        (fails(429, headers={"Retry-After": "0"}), "llm_rate_limited", True, 0),
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
    memory = StoredConversation({"fetch.page": fetched})
    script = [calls(("fetch_page", {"url": "a"})), fault, says("One page.")]
    async with language_models(*script, provider=provider) as (models, server):
        with pytest.raises(BlockError) as caught:
            await answer_of(context, models, memory)
        error = caught.value
        assert (error.code, error.retryable, error.retry_after) == (code, retryable, retry_after)
        assert await answer_of(context, models, memory) == {"text": "One page."}
    assert len(server.requests) == 3
    assert [call for _, _, call in memory.called] == ["1.1"]
    # The tokens of an unusable answer are recorded too.
    assert len(memory.tokens) == (3 if code in ("llm_too_long", "llm_refused") else 2)
    outputs = (error.message, caplog.text, str(memory.kept))
    assert not [text for text in outputs if KEY in text]


async def test_agent_without_configured_model_reports_the_missing_setting(context: BlockContext) -> None:
    models = LanguageModels(Settings(llm_base_url=None, llm_api_key=None, llm_model=None)).of(caller())
    with pytest.raises(BlockError, match="LLM_API_KEY") as caught:
        await answer_of(context, models, StoredConversation())
    assert (caught.value.code, caught.value.retryable) == ("llm_not_configured", False)
