"""Streamed responses that are kept for equal requests, with real servers on loopback."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
import sqlalchemy as sa

from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_streams import FromCache, StreamEnd, StreamEvent, TextDelta, ToolCallDelta
from bloxserver.llm.cache import cached_as
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.gateway import LanguageModels
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmCallRecord
from bloxserver.plans import PLANS
from tests.factories import create_user
from tests.llm.callers import caller
from tests.llm.test_cache import TOTAL, ask, gateway, question
from tests.llm_server import Asked, Reply, calls, fails, says
from tests.llm_streams import Closed, streams
from tests.metric_increase import measure_increase


def call(temperature: float | None = 0) -> ModelCall:
    return ModelCall(question(), temperature=temperature)


async def streamed(models: LanguageModels, user: Caller, temperature: float | None = 0) -> list[StreamEvent]:
    return [event async for event in models.stream(call(temperature), user)]


def shown(events: list[StreamEvent]) -> list[StreamEvent]:
    """The events without the end."""
    return events[:-1]


async def test_complete_stream_answers_the_next_stream_and_the_next_request() -> None:
    user = caller()
    async with gateway([streams("I ", "do.")]) as (models, server):
        with measure_increase(TOTAL, result="miss") as missed, measure_increase(TOTAL, result="hit") as hits:
            assert shown(await streamed(models, user)) == [TextDelta("I "), TextDelta("do.")]
            *events, end = await streamed(models, user)
            assert events == [FromCache(), TextDelta("I do.")]
            assert isinstance(end, StreamEnd)
            assert (cached_as(end.response), end.response.usage.total_tokens) == ("hit", 0)
            assert await ask(models.of(user)) == "I do."
        assert (missed.number, hits.number, len(server.requests)) == (1, 2, 1)


async def test_response_to_a_request_answers_a_stream() -> None:
    user = caller()
    async with gateway([calls(("fetch", {"url": "a"}), text="Let me look.")]) as (models, server):
        await ask(models.of(user))
        start, text, tool, end = await streamed(models, user)
        assert (start, text) == (FromCache(), TextDelta("Let me look."))
        assert isinstance(tool, ToolCallDelta)
        assert (tool.index, tool.name, tool.arguments) == (0, "fetch", '{"url": "a"}')
        assert isinstance(end, StreamEnd)
        assert len(server.requests) == 1


@pytest.mark.parametrize("temperature", [0.7, None])
async def test_stream_with_a_high_or_unset_temperature_is_not_kept(temperature: float | None) -> None:
    user = caller()
    async with gateway(lambda asked: streams("I do.")) as (models, server):
        for _ in range(2):
            assert shown(await streamed(models, user, temperature)) == [TextDelta("I do.")]
        assert len(server.requests) == 2


async def test_stream_of_another_user_is_not_used() -> None:
    async with gateway(lambda asked: streams("I do.")) as (models, server):
        for _ in range(2):
            assert shown(await streamed(models, caller())) == [TextDelta("I do.")]
        assert len(server.requests) == 2


@pytest.mark.parametrize("fault", [fails(400), streams("I ", finish=None), streams("I ", finish=None, end="closed")])
async def test_failed_stream_is_not_kept(fault: Reply) -> None:
    user = caller()
    async with gateway([fault, streams("I do.")]) as (models, _):
        with pytest.raises(ModelError):
            await streamed(models, user)
        assert shown(await streamed(models, user)) == [TextDelta("I do.")]


async def test_abandoned_stream_is_not_kept() -> None:
    user, closed = caller(), Closed()
    async with gateway([streams("I ", closed), streams("I do.")]) as (models, _), asyncio.timeout(20):
        async with aclosing(models.stream(call(), user)) as events:
            assert await anext(events) == TextDelta("I ")
        await closed.seen.wait()
        assert shown(await streamed(models, user)) == [TextDelta("I do.")]


async def test_stream_that_is_closed_at_its_end_is_kept() -> None:
    user = caller()
    async with gateway([streams("I do.")]) as (models, _):
        async with aclosing(models.stream(call(), user)) as events:
            while not isinstance(await anext(events), StreamEnd):
                pass
        assert (await streamed(models, user))[0] == FromCache()


async def test_stream_gets_the_response_to_an_equal_request_that_is_being_sent() -> None:
    user, go = caller(), asyncio.Event()
    async with gateway([streams("I ", go, "do.")]) as (models, server), asyncio.timeout(20):
        parts: list[str] = []
        sent = asyncio.create_task(models.request(call(), user, parts.append))
        await server.was_asked.wait()
        with measure_increase(TOTAL, result="coalesced") as coalesced:
            joined = asyncio.create_task(streamed(models, user))
            go.set()
            assert shown(await joined) == [FromCache(), TextDelta("I do.")]
        assert (coalesced.number, (await sent).text, parts) == (1, "I do.", ["I ", "do."])
        assert len(server.requests) == 1


async def test_stream_asks_itself_if_the_equal_request_fails() -> None:
    user, go = caller(), asyncio.Event()
    async with gateway([streams(go, finish=None), streams("I do.")]) as (models, server), asyncio.timeout(20):
        sent = asyncio.create_task(models.request(call(), user, lambda text: None))
        await server.was_asked.wait()
        joined = asyncio.create_task(streamed(models, user))
        go.set()
        assert shown(await joined) == [TextDelta("I do.")]
        with pytest.raises(ModelError):
            await sent


async def test_equal_request_does_not_wait_for_a_stream() -> None:
    """The receiver of the stream may be slow."""
    user = caller()

    def script(asked: Asked) -> Reply:
        return streams("I ", "do.") if asked.json.get("stream") else says("Done.")

    async with (
        gateway(script) as (models, server),
        aclosing(models.stream(call(), user)) as events,
        asyncio.timeout(20),
    ):
        assert await anext(events) == TextDelta("I ")
        assert await ask(models.of(user)) == "Done."
        assert len(server.requests) == 2


async def test_hit_uses_no_limits_and_no_tokens(live_database: Database) -> None:
    async with live_database.transaction() as session:
        user_id = (await create_user(session)).id
    user = Caller(user_id, "free", PLANS["free"])
    async with gateway([streams("I do.")], database=live_database) as (models, _):
        for _ in range(2 * PLANS["free"].llm_requests_per_minute):
            await streamed(models, user)
    async with live_database.transaction() as session:
        columns = (
            LlmCallRecord.cached,
            LlmCallRecord.input_tokens,
            LlmCallRecord.output_tokens,
            LlmCallRecord.attempts,
        )
        rows = (await session.execute(sa.select(*columns).order_by(LlmCallRecord.cached))).all()
    assert rows[0] == (False, 10, 5, 1)
    assert set(rows[1:]) == {(True, 0, 0, 0)}
