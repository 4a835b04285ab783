"""The agent: tool calls of the model, valid and invalid."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

import pytest
from pydantic import JsonValue

from bloxserver.blocks import http_request
from bloxserver.blocks.agent import MAX_ANSWER_BYTES
from bloxserver.blocks.agent_calls import MAX_RESULT_BYTES, without_nul
from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.tools import tool_of
from bloxserver.engine.run.isolated_tasks import IsolatedTasks
from bloxserver.plans import FREE
from bloxserver.raw_json import value_of_text
from tests.blocks.agents import (
    FETCH,
    SHAPE,
    StoredConversation,
    answer_of,
    both_providers,
    fetched,
    language_models,
    refused,
)
from tests.llm_server import Api, Reply, calls, says
from tests.llm_streams import Call, deltas, streams


@both_providers
async def test_tool_failure_is_reported_to_the_model(context: BlockContext, provider: Api) -> None:
    script = [calls(("fetch_page", {"url": "a"})), says("It is gone.")]
    async with language_models(*script, provider=provider) as (models, server):
        assert await answer_of(context, models, StoredConversation({"fetch.page": refused})) == {"text": "It is gone."}
    reason = "http_error_status: example.com answered 404 Not Found"
    result = server.requests[1].json["messages"][-1]
    if provider == "openai":
        assert json.loads(result["content"]) == {"error": reason}
    else:
        assert result["content"][0]["is_error"]
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
    ("wanted", "expected"),
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
    context: BlockContext, provider: Api, wanted: tuple[str, dict[str, Any] | str], expected: str
) -> None:
    memory = StoredConversation({"fetch.page": fetched})
    script = [calls(wanted, ("fetch_page", {"url": "a"})), calls(("fetch_page", {"url": "b"})), says("Done.")]
    tools = (FETCH, SHAPE, POST, GET)
    async with language_models(*script, provider=provider) as (models, server):
        assert await answer_of(context, models, memory, tools=tools) == {"text": "Done."}
    assert expected in server.requests[1].texts[2]
    assert [call for _, _, call in memory.called] == ["1.2", "2.1"]


def _raw(
    provider: Api, given: JsonValue, *others: tuple[str, JsonValue], ids: Sequence[JsonValue] = ("c1", "c2")
) -> Reply:
    """Calls of `fetch_page` from a server that violates the API."""
    wanted = [("fetch_page", given), *others]
    # Anthropic's arguments are sent as pieces of JSON.
    made = [
        Call(name, (cast(str, arguments) if provider == "openai" else json.dumps(arguments),), id=cast(str, call_id))
        for (name, arguments), call_id in zip(wanted, ids, strict=False)
    ]
    return streams(*made, finish="tool_calls")


@both_providers
@pytest.mark.parametrize("given", [[], None, 1, True, ["a"], "", {}, {"url": "a"}], ids=repr)
async def test_tool_arguments_of_wrong_type_are_reported_to_the_model(
    context: BlockContext, provider: Api, given: JsonValue
) -> None:
    memory = StoredConversation({"fetch.page": fetched})
    async with language_models(_raw(provider, given), says("Done."), provider=provider) as (models, server):
        assert await answer_of(context, models, memory) == {"text": "Done."}
    # OpenAI's arguments are a text, which can be empty or missing. Anthropic's are an object.
    if given in ("", None) if provider == "openai" else isinstance(given, dict):
        assert memory.called == [("fetch.page", given or {}, "1.1")]
    else:
        assert memory.called == []
        assert "invalid_arguments: the arguments must be a JSON object" in server.requests[1].texts[2]


@pytest.mark.parametrize(
    "call", [{}, None, {"id": 1, "function": None}, {"id": "x", "function": {"name": 5}}], ids=repr
)
async def test_incomplete_tool_call_is_reported_to_the_model(context: BlockContext, call: JsonValue) -> None:
    async with language_models(deltas({"tool_calls": [call]}, finish="tool_calls"), says("Done.")) as (models, server):
        assert await answer_of(context, models, StoredConversation()) == {"text": "Done."}
    assert "unknown_tool" in server.requests[1].texts[2]


@both_providers
async def test_tool_calls_with_equal_ids_get_unique_ids(context: BlockContext, provider: Api) -> None:
    given: JsonValue = '{"url": "a"}' if provider == "openai" else {"url": "a"}
    reply = _raw(provider, given, ("fetch_page", given), ids=("same", "same"))
    memory = StoredConversation({"fetch.page": fetched})
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
    memory = StoredConversation({"fetch.page": fetched})
    async with language_models(calls(("fetch_page", "")), says("Done.")) as (models, _):
        await answer_of(context, models, memory)
    assert memory.called == [("fetch.page", {}, "1.1")]


async def test_long_tool_result_is_truncated_with_a_note(context: BlockContext) -> None:
    async def much(payload: JsonValue) -> JsonValue:
        return "ä" * MAX_RESULT_BYTES

    async with language_models(calls(("fetch_page", {})), says("Much.")) as (models, server):
        await answer_of(context, models, StoredConversation({"fetch.page": much}))
    result = server.requests[1].texts[2]
    assert result.startswith("ä" * (MAX_RESULT_BYTES // 2) + "\n[truncated")
    assert f"of {2 * MAX_RESULT_BYTES} bytes" in result
    assert len(result) < MAX_RESULT_BYTES


async def test_nul_characters_are_replaced(context: BlockContext) -> None:
    memory = StoredConversation({"fetch.page": fetched})
    script = [calls(("fetch_page", '{"url": "a\\u0000", "path": "\\\\u0000"}'), text="one\0"), says("a\0b \\u0000")]
    async with language_models(*script) as (models, _):
        assert await answer_of(context, models, memory) == {"text": "a\ufffdb \\u0000"}
    assert memory.called == [("fetch.page", {"url": "a\ufffd", "path": "\\u0000"}, "1.1")]
    assert "\0" not in str(memory.kept)
    assert "one\ufffd" in str(memory.kept)


@pytest.mark.parametrize(
    "text",
    [
        r'"\u0000"',
        r'"\\u0000"',
        r'"\\\u0000"',
        r'"\\\\u0000"',
        r'"\n\\u0000\u0000"',
        r'"\"\u0000\\"',
        r'"\\\\\u0000\\u0000"',
    ],
)
def test_only_nul_characters_are_replaced(text: str) -> None:
    assert json.loads(without_nul(text)) == json.loads(text).replace("\0", "\ufffd")


class TestLargeValues:
    """The CPU time of `isolated` shows where a value was read: it is that of other processes."""

    @pytest.fixture
    def isolated(self) -> IsolatedTasks:
        return IsolatedTasks(uuid4(), FREE)

    @pytest.fixture
    def calling(self, context: BlockContext, isolated: IsolatedTasks) -> BlockContext:
        return replace(context, isolated=isolated)

    @pytest.mark.parametrize(("count", "in_process"), [(1_000, True), (10_000, False)])
    async def test_large_arguments_are_read_in_another_process(
        self, calling: BlockContext, isolated: IsolatedTasks, count: int, in_process: bool
    ) -> None:
        memory = StoredConversation({"shape": fetched})
        lists: JsonValue = {"url": [[] for _ in range(count)]}
        async with language_models(calls(("shape", {"input": lists})), says("Done.")) as (models, _):
            assert await answer_of(calling, models, memory) == {"text": "Done."}
        assert memory.called == [("shape", lists, "1.1")]
        assert (isolated.cpu_seconds == 0) == in_process

    async def test_invalid_large_arguments_are_reported_to_the_model(
        self, calling: BlockContext, isolated: IsolatedTasks
    ) -> None:
        script = [calls(("shape", {"unknown": ["x" * 50_000]})), says("Sorry.")]
        async with language_models(*script) as (models, server):
            await answer_of(calling, models, StoredConversation())
        assert "remove the arguments that this tool does not accept: unknown" in server.requests[1].texts[-1]
        assert isolated.cpu_seconds > 0

    async def test_large_result_is_written_and_cut_in_another_process(
        self, calling: BlockContext, isolated: IsolatedTasks
    ) -> None:
        async def much(payload: JsonValue) -> Any:
            return value_of_text(json.dumps([[]] * 100_000))

        async with language_models(calls(("fetch_page", {})), says("Much.")) as (models, server):
            await answer_of(calling, models, StoredConversation({"fetch.page": much}))
        result = server.requests[1].texts[-1]
        assert re.fullmatch(rf"\[(\[\],)+(\[\]?)?\n\[truncated: the first {MAX_RESULT_BYTES} of 300001 bytes\]", result)
        assert isolated.cpu_seconds > 0

    async def test_answer_that_is_too_large_fails_and_is_charged(self, calling: BlockContext) -> None:
        memory = StoredConversation()
        script = [says("x" * (MAX_ANSWER_BYTES + 1), input_tokens=60, output_tokens=7)]
        async with language_models(*script) as (models, _):
            with pytest.raises(BlockError, match=f"has {MAX_ANSWER_BYTES + 1} bytes, more than {MAX_ANSWER_BYTES};"):
                await answer_of(calling, models, memory)
        assert memory.tokens == [(60, 7)]
