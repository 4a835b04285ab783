"""Limits of calls in a minute and at a time: exact in the database and in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic_ai.messages import ModelMessage, ModelRequest, SystemPromptPart, UserPromptPart
from pydantic_ai.tools import ToolDefinition

from bloxserver.llm import settlements
from bloxserver.llm.admission import CallLimits
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.database_limits import DatabaseLimits
from bloxserver.llm.limits import (
    Limit,
    LimitStore,
    ModelLimitReached,
    Reservation,
    Settlement,
    estimated_tokens,
    reservation_of,
)
from bloxserver.llm.redis_limits import RedisLimits
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmReservationRecord, LlmWindowRecord
from bloxserver.plans import PLANS, Plan
from bloxserver.settings import Settings
from tests.factories import create_user
from tests.llm.catalogues import Clock
from tests.redis_server import redis_server
from tests.statements import count_statements

MESSAGES: list[ModelMessage] = [ModelRequest([SystemPromptPart("abc" * 10), UserPromptPart("abc" * 20)])]
CALL = ModelCall(MESSAGES, max_tokens=70)
"""Reserves 100 tokens."""
FREE = PLANS["free"]


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.moment = clock.moment.replace(second=1)
    return clock


@pytest.fixture(params=["database", "redis"])
async def stores(
    request: pytest.FixtureRequest, live_database: Database, clock: Clock
) -> AsyncIterator[list[LimitStore]]:
    """The stores of three processes."""
    async with AsyncExitStack() as stack:
        if request.param == "database":
            yield [DatabaseLimits(live_database, clock) for _ in range(3)]
            return
        url = await stack.enter_async_context(redis_server())
        stores = [RedisLimits(url, clock) for _ in range(3)]
        for store in stores:
            stack.push_async_callback(store.aclose)
        yield list(stores)


@pytest.fixture
async def user_id(live_database: Database) -> UUID:
    async with live_database.transaction() as session:
        return (await create_user(session)).id


def caller(user_id: UUID, **limits: Any) -> Caller:
    return Caller(user_id, "free", replace(FREE, **limits))


def reservation(user_id: UUID, clock: Clock, call: ModelCall = CALL) -> Reservation:
    return reservation_of(call, caller(user_id), clock(), 60)


WIDE: dict[str, Any] = {
    "llm_requests_per_minute": 1_000,
    "llm_tokens_per_minute": 1_000_000,
    "llm_concurrent": 1_000,
}


def plan(**limits: Any) -> Plan:
    return replace(FREE, **(WIDE | limits))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"llm_requests_per_minute": 20}, 20),
        ({"llm_tokens_per_minute": 2_050}, 20),
        ({"llm_concurrent": 20}, 20),
        ({"llm_concurrent": 0}, 0),
        ({"llm_requests_per_minute": 0}, 0),
        ({"llm_tokens_per_minute": 99}, 0),
    ],
)
async def test_limits_are_exact_for_concurrent_calls_of_several_processes(
    stores: list[LimitStore], user_id: UUID, clock: Clock, limits: dict[str, int], expected: int
) -> None:
    results = await asyncio.gather(
        *(store.reserve(reservation(user_id, clock), plan(**limits)) for store in stores for _ in range(20))
    )
    assert sum(is_counted for is_counted, _ in results) == expected
    refused = [used for is_counted, used in results if not is_counted]
    assert {used.active for used in refused} == {expected}


async def test_settlement_replaces_the_estimate_by_what_was_used(
    stores: list[LimitStore], user_id: UUID, clock: Clock
) -> None:
    first, second = reservation(user_id, clock), reservation(user_id, clock)
    for each in (first, second):
        await stores[0].reserve(each, plan())
    await stores[1].settle([Settlement(first, 30), Settlement(second, 250)])
    await stores[1].settle([Settlement(first, 30)])  # a repeated settlement has no effect
    _, used = await stores[2].reserve(reservation(user_id, clock), plan())
    assert (used.requests, used.tokens, used.active) == (3, 380, 1)


async def test_next_minute_begins_with_nothing_used(stores: list[LimitStore], user_id: UUID, clock: Clock) -> None:
    narrow = plan(llm_requests_per_minute=1)
    held = reservation(user_id, clock)
    assert (await stores[0].reserve(held, narrow))[0]
    assert not (await stores[1].reserve(reservation(user_id, clock), narrow))[0]
    clock.advance(60)
    is_counted, used = await stores[1].reserve(reservation(user_id, clock), narrow)
    assert (is_counted, used.requests, used.tokens, used.active) == (True, 1, 100, 2)
    # What a call of the minute before has used does not count in this one.
    await stores[0].settle([Settlement(held, 5_000)])
    _, used = await stores[2].reserve(reservation(user_id, clock), narrow)
    assert (used.tokens, used.active) == (100, 1)


async def test_reservation_of_a_process_that_died_expires(
    stores: list[LimitStore], user_id: UUID, clock: Clock
) -> None:
    narrow = plan(llm_concurrent=1)
    lost = reservation(user_id, clock)
    assert (await stores[0].reserve(lost, narrow))[0]
    clock.advance(89)
    assert not (await stores[1].reserve(reservation(user_id, clock), narrow))[0]
    clock.advance(1)
    is_counted, used = await stores[1].reserve(reservation(user_id, clock), narrow)
    assert (is_counted, used.active) == (True, 1)
    # Its process was only slow.
    await stores[0].settle([Settlement(lost, 1)])
    assert not (await stores[2].reserve(reservation(user_id, clock), narrow))[0]


async def test_users_have_separate_limits(
    stores: list[LimitStore], user_id: UUID, live_database: Database, clock: Clock
) -> None:
    async with live_database.transaction() as session:
        other = (await create_user(session, clerk_id="other", email="other@example.com")).id
    narrow = plan(llm_requests_per_minute=1)
    assert [(await stores[0].reserve(reservation(each, clock), narrow))[0] for each in (user_id, other)] == [True, True]


@pytest.mark.parametrize(
    ("limits", "limit", "used", "retry_after"),
    [
        ({"llm_requests_per_minute": 1}, Limit.REQUESTS, 1, 59),
        ({"llm_tokens_per_minute": 150}, Limit.TOKENS, 100, 59),
        ({"llm_concurrent": 1}, Limit.CONCURRENT, 1, 3),
        ({"llm_tokens_per_minute": 99}, Limit.TOKENS, 100, None),
    ],
)
async def test_error_names_the_limit_and_the_time_to_wait(
    live_database: Database,
    user_id: UUID,
    clock: Clock,
    limits: dict[str, int],
    limit: Limit,
    used: int,
    retry_after: float | None,
) -> None:
    clock.moment = clock.moment.replace(microsecond=0)
    call_limits = CallLimits(DatabaseLimits(live_database, clock), clock)
    calling = caller(user_id, **(WIDE | limits))
    async with AsyncExitStack() as stack:
        if retry_after is not None:
            await stack.enter_async_context(call_limits.reserved(CALL, calling, 60))
        with pytest.raises(ModelLimitReached) as caught:
            await stack.enter_async_context(call_limits.reserved(CALL, calling, 60))
    error = caught.value
    assert (error.limit, error.maximum, error.used) == (limit, limits[limit], used)
    assert (error.retry_after, error.retryable, error.is_postponed) == (
        retry_after,
        retry_after is not None,
        retry_after is not None,
    )
    await call_limits.aclose()


async def rows(database: Database) -> tuple[int, int, int]:
    """The tokens and active reservations of the only user, and the number of reservations."""
    async with database.transaction(read_only=True) as session:
        window = (await session.execute(sa.select(LlmWindowRecord.tokens, LlmWindowRecord.active))).one()
        number = await session.scalar(sa.select(sa.func.count()).select_from(LlmReservationRecord))
    return window.tokens, window.active, number or 0


async def test_call_is_settled_when_it_ends_fails_or_is_cancelled(
    live_database: Database, user_id: UUID, clock: Clock
) -> None:
    limits = CallLimits(DatabaseLimits(live_database, clock), clock)
    calling = caller(user_id, **WIDE)
    async with limits.reserved(CALL, calling, 60) as spent:
        assert await rows(live_database) == (100, 1, 1)
        spent.tokens = 7
    await limits.aclose()
    assert await rows(live_database) == (7, 0, 0)
    with pytest.raises(asyncio.CancelledError):
        async with limits.reserved(CALL, calling, 60):
            raise asyncio.CancelledError
    await limits.aclose()
    # The provider may have counted all tokens of a call without a result.
    assert await rows(live_database) == (107, 0, 0)


async def test_settlements_are_written_together(live_database: Database, user_id: UUID, clock: Clock) -> None:
    limits = CallLimits(DatabaseLimits(live_database, clock), clock)
    calling = caller(user_id, **WIDE)
    async with AsyncExitStack() as stack:
        for _ in range(50):
            spent = await stack.enter_async_context(limits.reserved(CALL, calling, 60))
            spent.tokens = 1
        with count_statements(live_database.engine) as statements:
            await stack.aclose()
            await limits.aclose()
    assert await rows(live_database) == (50, 0, 0)
    assert len(statements) <= 6


async def test_reservation_is_one_statement_on_postgresql(live_database: Database, user_id: UUID, clock: Clock) -> None:
    store = DatabaseLimits(live_database, clock)
    engine = live_database.engine if live_database.is_sqlite else live_database.single_statement_sessions.kw["bind"]
    with count_statements(engine) as statements:
        assert (await store.reserve(reservation(user_id, clock), plan()))[0]
    assert len(statements) == (2 if live_database.is_sqlite else 1)


async def test_call_is_admitted_while_the_counts_cannot_be_read(
    live_database: Database, user_id: UUID, clock: Clock
) -> None:
    async with live_database.transaction() as session:
        await session.execute(sa.text("DROP TABLE llm_reservations"))
    limits = CallLimits(DatabaseLimits(live_database, clock), clock)
    async with limits.reserved(CALL, caller(user_id), 60) as spent:
        assert spent.tokens is None


async def test_expired_reservations_of_all_users_end(live_database: Database, user_id: UUID, clock: Clock) -> None:
    store = DatabaseLimits(live_database, clock)
    for _ in range(2):
        await store.reserve(reservation(user_id, clock), plan())
    clock.advance(90)
    await store.settle([])
    assert await rows(live_database) == (200, 0, 0)


async def test_call_at_a_limit_counts_the_calls_of_its_process_that_have_ended(
    stores: list[LimitStore], user_id: UUID, clock: Clock
) -> None:
    limits = CallLimits(stores[0], clock)
    narrow = caller(user_id, **WIDE | {"llm_concurrent": 1})
    admitted = 0
    for _ in range(20):
        async with limits.reserved(CALL, narrow, 60):
            admitted += 1
    await limits.aclose()
    assert admitted == 20


async def test_end_of_a_call_is_written_with_others_unless_other_processes_may_need_it(
    live_database: Database, user_id: UUID, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlements, "LINGER_SECONDS", 3_600)
    limits, other = CallLimits(DatabaseLimits(live_database, clock), clock), DatabaseLimits(live_database, clock)
    for _ in range(3):
        async with limits.reserved(CALL, caller(user_id, **WIDE | {"llm_concurrent": 7}), 60):
            pass
    assert await rows(live_database) == (300, 3, 3)
    narrow = WIDE | {"llm_concurrent": 4}
    async with limits.reserved(CALL, caller(user_id, **narrow), 60):
        assert not (await other.reserve(reservation(user_id, clock), plan(**narrow)))[0]
    async with asyncio.timeout(30):
        while not (await other.reserve(reservation(user_id, clock), plan(**narrow)))[0]:
            pass
    assert await rows(live_database) == (500, 1, 1)
    await limits.aclose()


async def test_cancelled_reservation_is_not_kept(live_database: Database, user_id: UUID, clock: Clock) -> None:
    limits = CallLimits(DatabaseLimits(live_database, clock), clock)

    async def call() -> None:
        async with limits.reserved(CALL, caller(user_id, **WIDE), 60):
            await asyncio.Event().wait()

    await DatabaseLimits(live_database, clock).reserve(reservation(user_id, clock), plan())
    for steps in range(1, 60, 2):
        calling = asyncio.create_task(call())
        for _ in range(steps):
            await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
    await limits.aclose()
    _, active, number = await rows(live_database)
    assert (active, number) == (1, 1)


def test_limits_apply_where_rates_are_limited() -> None:
    database = Database(Settings())
    assert CallLimits.of(Settings(rate_limits=False), database) is None
    assert CallLimits.of(Settings(env="development"), database) is None
    assert CallLimits.of(Settings(rate_limits=True), database) is not None


def test_estimate_counts_texts_and_tools() -> None:
    assert estimated_tokens(CALL) == 100
    assert estimated_tokens(ModelCall(MESSAGES)) == 30 + 1_024
    tool = ToolDefinition(name="a" * 30, parameters_json_schema={"type": "object"}, description="b" * 270)
    assert estimated_tokens(ModelCall(MESSAGES, tools=[tool], max_tokens=70)) >= 200
