"""Streamed responses of a model that several providers serve, with real servers on loopback."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_streams import StreamEnd, StreamEvent, TextDelta
from bloxserver.llm.breaker import FAILURES
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.gateway import LanguageModels
from bloxserver.llm.limits import ModelLimitReached, estimated_tokens
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmCallRecord, LlmWindowRecord
from bloxserver.plans import PLANS
from tests.factories import create_user
from tests.llm.callers import caller
from tests.llm.catalogues import Clock, providers, settings_of
from tests.llm.test_failover import MESSAGES, always, two_providers
from tests.llm_server import Reply, fails, hangs_up, language_model, never, page
from tests.llm_streams import Closed, streams
from tests.metric_increase import measure_increase

CALL = ModelCall(MESSAGES, "parrot-1")


async def streamed(models: LanguageModels) -> list[StreamEvent]:
    return [event async for event in models.stream(CALL, caller())]


async def failed(models: LanguageModels) -> tuple[str, list[StreamEvent]]:
    events: list[StreamEvent] = []
    try:
        async for event in models.stream(CALL, caller()):
            events.append(event)
    except ModelError as error:
        return error.code, events
    pytest.fail("the stream has ended without an error")


@pytest.mark.parametrize("name", ["500", "529", "429", "quota", "page", "hung up", "never", "cut", "no token", "error"])
async def test_another_provider_is_asked_before_the_first_token(tmp_path: Path, name: str) -> None:
    faults: dict[str, Reply] = {
        "500": fails(500),
        "529": fails(529, type="overloaded_error"),
        "429": fails(429),
        "quota": fails(429, code="insufficient_quota"),
        "page": page(),
        "hung up": hangs_up(),
        "never": never(),
        "cut": streams(finish=None),
        "no token": streams(asyncio.Event()),
        "error": streams(error={"type": "server_error", "message": "no"}),
    }
    second = always(streams("I ", "did."))
    async with two_providers(tmp_path, always(faults[name]), second, first_token_timeout_seconds=1) as (models, *both):
        *deltas, end = await streamed(models)
        assert deltas == [TextDelta("I "), TextDelta("did.")]
        assert isinstance(end, StreamEnd)
        assert [len(server.requests) for server in both] == [1, 1]


async def test_no_other_provider_is_asked_after_the_first_token(tmp_path: Path) -> None:
    clock = Clock()
    cut = streams("I ", finish=None, end="closed")
    async with two_providers(tmp_path, always(cut), always(streams("I did.")), clock=clock) as (models, first, second):
        for _ in range(FAILURES):
            assert await failed(models) == ("llm_cut_off", [TextDelta("I ")])
        assert len(second.requests) == 0
        *deltas, _ = await streamed(models)  # these failures have opened the breaker
        assert deltas == [TextDelta("I did.")]
        assert (len(first.requests), len(second.requests)) == (FAILURES, 1)


@pytest.mark.parametrize("fault", [fails(400), fails(401), streams(finish="length")])
async def test_error_of_the_request_is_not_streamed_from_another_provider(tmp_path: Path, fault: Reply) -> None:
    async with two_providers(tmp_path, always(fault), always(streams("I did."))) as (models, first, second):
        for _ in range(FAILURES + 1):
            assert (await failed(models))[1] == []
        assert (len(first.requests), len(second.requests)) == (FAILURES + 1, 0)


async def test_error_while_no_provider_may_be_asked(tmp_path: Path) -> None:
    async with two_providers(tmp_path, always(fails(500)), always(fails(500))) as (models, first, _):
        codes = [await failed(models) for _ in range(FAILURES + 1)]
        assert codes == [("llm_unavailable", [])] * (FAILURES + 1)
        assert len(first.requests) == FAILURES


async def test_closed_stream_closes_the_connection_and_ends_its_probe(tmp_path: Path, live_database: Database) -> None:
    clock, closed = Clock(), Closed()
    replies = iter([*[fails(500)] * FAILURES, streams("I ", closed)])
    async with two_providers(
        tmp_path, lambda asked: next(replies, streams("First.")), always(fails(400)), live_database, clock
    ) as (models, *_):
        for _ in range(FAILURES):
            await failed(models)
        clock.advance(30)
        async with aclosing(models.stream(CALL, caller())) as events, asyncio.timeout(10):
            assert await anext(events) == TextDelta("I ")
            await events.aclose()
            await closed.seen.wait()
        assert (await streamed(models))[0] == TextDelta("First.")


async def test_cancelled_stream_ends_its_probe(tmp_path: Path) -> None:
    clock, replies = Clock(), iter([*[fails(500)] * FAILURES, streams(asyncio.Event())])
    async with two_providers(
        tmp_path, lambda asked: next(replies, streams("First.")), always(fails(400)), clock=clock
    ) as (models, first, _):
        for _ in range(FAILURES):
            await failed(models)
        clock.advance(30)
        first.was_asked.clear()
        probe = asyncio.create_task(streamed(models))
        async with asyncio.timeout(10):
            await first.was_asked.wait()
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert (await streamed(models))[0] == TextDelta("First.")


async def test_stream_that_is_closed_at_its_end_has_succeeded(tmp_path: Path) -> None:
    async with (
        two_providers(tmp_path, always(streams("I do.")), always(fails(400))) as (models, *_),
        aclosing(models.stream(CALL, caller())) as events,
    ):
        with measure_increase("bloxserver_llm_requests_total", provider="first", outcome="success") as increase:
            while not isinstance(await anext(events), StreamEnd):
                pass
            await events.aclose()
    assert increase.number == 1


@pytest.mark.parametrize("ending", ["complete", "cut", "closed"])
async def test_stream_is_counted_in_the_limits_of_its_user(
    tmp_path: Path, live_database: Database, ending: str
) -> None:
    async with live_database.transaction() as session:
        user_id = (await create_user(session)).id
    limited = Caller(user_id, "free", replace(PLANS["free"], llm_concurrent=1))
    reply = streams("I ", "do.", finish=None if ending == "cut" else "stop")
    async with language_model(always(reply)) as server:
        document = {"providers": providers({"first": server.url})}
        models = LanguageModels(settings_of(tmp_path, document, rate_limits=True), live_database)
        async with aclosing(models.stream(CALL, limited)) as events:
            await anext(events)
            with pytest.raises(ModelLimitReached):
                await anext(models.stream(CALL, limited))
            try:
                while ending != "closed":
                    await anext(events)
            except (StopAsyncIteration, ModelError):
                pass
        await models.aclose()
    async with live_database.transaction() as session:
        tokens, active = (await session.execute(sa.select(LlmWindowRecord.tokens, LlmWindowRecord.active))).one()
        record = LlmCallRecord
        columns = (record.input_tokens, record.output_tokens, record.error_code, record.first_token_ms)
        calls = (await session.execute(sa.select(*columns).order_by(record.id))).all()
    # What was used is not known unless the stream was complete: what was reserved stays counted.
    assert (tokens, active) == (15 if ending == "complete" else estimated_tokens(CALL), 0)
    # The other call was refused.
    [(*used, error_code, first_token_ms)] = [tuple(call) for call in calls if call.error_code != "llm_limit_reached"]
    codes = {"complete": None, "cut": "llm_cut_off", "closed": "cancelled"}
    assert (used, error_code) == ([10, 5] if ending == "complete" else used, codes[ending])
    assert all(used)
    assert first_token_ms is not None
