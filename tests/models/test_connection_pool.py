"""Tenants take turns for the connections of a pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bloxserver.api.main import app
from bloxserver.engine.queue.checkpoints import CheckpointWriter
from bloxserver.models.connection_pool import (
    MAX_HELD_SECONDS,
    NEXT_SECONDS,
    ConnectionPool,
    ConnectionTurns,
    current_tenant,
)
from bloxserver.models.database import Database
from bloxserver.models.enums import FlowStatus
from bloxserver.settings import Settings
from tests.conftest import api_client
from tests.database_override import override_database
from tests.engine.queue.test_checkpoints import checkpoint, claimed_executions
from tests.factories import create_flow, create_trigger, create_user
from tests.sqlite_threads import join_connection_threads

SELECT = sa.text("SELECT 1")


@asynccontextmanager
async def pool(url: str, size: int, seconds: float = 30) -> AsyncIterator[AsyncEngine]:
    """An engine with a pool of this size."""
    engine = create_async_engine(url, poolclass=ConnectionPool, pool_size=size, max_overflow=0, pool_timeout=seconds)
    try:
        yield engine
    finally:
        await engine.dispose()
        await join_connection_threads()


async def use(engine: AsyncEngine, tenant: Hashable, order: list[Hashable]) -> None:
    """Record when the tenant got a connection."""
    current_tenant.set(tenant)
    async with engine.connect() as connection:
        order.append(tenant)
        await connection.execute(SELECT)


async def test_a_connection_that_is_returned_after_the_pool_was_disposed_of_is_closed(live_settings: Settings) -> None:
    """A task that is cancelled at shutdown can return its connection late."""
    closed: list[object] = []
    async with pool(live_settings.database_url, 3) as engine:
        event.listen(engine.sync_engine, "close", lambda connection, record: closed.append(connection))
        async with engine.connect() as connection, engine.connect():
            await connection.execute(SELECT)
            await engine.dispose()
            assert closed == []
        assert len(closed) == 2


async def test_a_tenant_waits_once_for_each_other_tenant(live_settings: Settings) -> None:
    order: list[Hashable] = []
    async with pool(live_settings.database_url, 1) as engine, asyncio.TaskGroup() as tasks, engine.connect():
        for tenant in ["a", "a", "a", "a", "b", "b", "c"]:
            tasks.create_task(use(engine, tenant, order))
            await asyncio.sleep(0)
    assert order[:3] == ["a", "b", "c"]
    assert sorted(map(str, order)) == ["a", "a", "a", "a", "b", "b", "c"]


async def test_tasks_without_a_tenant_do_not_wait_for_each_others_tenants(live_settings: Settings) -> None:
    order: list[Hashable] = []
    async with pool(live_settings.database_url, 1) as engine, asyncio.TaskGroup() as tasks, engine.connect():
        for tenant in ["a", "a", "a", None, None]:
            tasks.create_task(use(engine, tenant, order))
            await asyncio.sleep(0)
    assert order == ["a", None, None, "a", "a"]


async def test_the_last_connection_is_left_for_other_tenants(live_settings: Settings) -> None:
    async with pool(live_settings.database_url, 3, seconds=0.05) as engine, AsyncExitStack() as stack:
        current_tenant.set("a")
        for _ in range(2):
            await stack.enter_async_context(engine.connect())
        with pytest.raises(PoolTimeout, match=r"no connection of 3 was free in 0\.05 s"):
            await stack.enter_async_context(engine.connect())
        current_tenant.set("b")
        other = await stack.enter_async_context(engine.connect())
        assert await other.scalar(SELECT) == 1


async def test_cancelled_wait_and_failed_connection_free_the_connection(live_settings: Settings) -> None:
    async with pool(live_settings.database_url, 1) as engine:
        async with engine.connect():
            waiting = asyncio.create_task(use(engine, "a", []))
            await asyncio.sleep(0)
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with engine.connect() as connection:
            await connection.invalidate()
        async with engine.connect() as connection:
            assert await connection.scalar(SELECT) == 1
    async with pool("sqlite+aiosqlite:////nowhere/missing.db", 1, seconds=0.05) as engine:
        for _ in range(2):
            with pytest.raises(sa.exc.OperationalError):
                await use(engine, "a", [])


async def test_a_turn_that_was_given_to_a_cancelled_task_goes_to_the_next() -> None:
    turns = ConnectionTurns(1)
    assert turns.request("a").done()
    given = turns.request("b")
    next_turn = turns.request("c")
    waiting = asyncio.create_task(turns.wait("b", given, 1))
    await asyncio.sleep(0)
    turns.end("a")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert next_turn.done()


class Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class LongAndShort:
    """One connection, of which the tenant "long" has just used a second, and "short" a millisecond."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.turns = ConnectionTurns(1, self.clock)
        assert self.turns.request("long").done()
        waiting = self.turns.request("short")
        self.use("long", 1)
        assert waiting.done()

    def use(self, tenant: str, seconds: float) -> None:
        """End a transaction of this length."""
        self.clock.seconds += seconds
        self.turns.end(tenant)


async def test_long_transaction_waits_for_the_next_one_of_another_tenant() -> None:
    both = LongAndShort()
    long = both.turns.request("long")
    both.use("short", 0.001)
    assert not long.done()
    assert both.turns.request("short").done()
    both.use("short", 0.001)
    assert not long.done()
    both.clock.seconds += NEXT_SECONDS
    await asyncio.wait_for(long, 5)


async def test_long_transaction_waits_only_if_another_one_has_just_ended() -> None:
    both = LongAndShort()
    both.use("short", 0.001)
    both.clock.seconds += NEXT_SECONDS
    assert both.turns.request("long").done()


async def test_tenant_within_its_share_does_not_wait_for_transactions_that_have_not_begun() -> None:
    both = LongAndShort()
    other = both.turns.request("other")
    both.use("short", 0.001)
    assert other.done()


async def test_long_transaction_does_not_wait_forever() -> None:
    both = LongAndShort()
    long = both.turns.request("long")
    for _ in range(100):
        both.use("short", 0.001)
        if long.done():
            break
        both.clock.seconds += 0.01
        assert both.turns.request("short").done()
    assert both.clock.seconds < 1 + MAX_HELD_SECONDS + 0.02


async def test_transactions_do_not_wait_if_there_are_several_connections() -> None:
    clock = Clock()
    turns = ConnectionTurns(2, clock)
    assert turns.request("long").done()
    clock.seconds += 1
    turns.end("long")
    assert turns.request("short").done()
    turns.end("short")
    assert turns.request("long").done()


def test_waiting_tasks_of_a_closed_event_loop_are_skipped() -> None:
    turns = ConnectionTurns(1)

    async def wait() -> None:
        turns.request("a")
        turns.request("b")

    asyncio.run(wait())

    async def end() -> bool:
        turns.end("a")
        return turns.request("c").done()

    assert asyncio.run(end())


async def test_checkpoints_do_not_wait_for_the_tenant_that_saved_the_first(live_settings: Settings) -> None:
    database = Database(live_settings.model_copy(update={"database_pool_size": 1}))
    await database.migrate()
    execution = (await claimed_executions(database))[0]
    order: list[Hashable] = []
    async with asyncio.TaskGroup() as tasks, database.engine.connect():
        current_tenant.set("a")
        for _ in range(3):
            tasks.create_task(use(database.engine, "a", order))
            await asyncio.sleep(0)
        saving = tasks.create_task(CheckpointWriter(database).save(checkpoint(execution)))
        saving.add_done_callback(lambda _: order.append("saved"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert order.index("saved") < 3
    await database.dispose()
    await join_connection_threads()


async def test_webhooks_take_turns_by_their_token(live_settings: Settings) -> None:
    database = Database(live_settings.model_copy(update={"database_pool_size": 1}))
    await database.migrate()
    async with database.sessions() as session:
        flow = await create_flow(session, await create_user(session), status=FlowStatus.RUNNING)
        tokens = [str((await create_trigger(session, flow)).webhook_token) for _ in range(2)]
    order: list[str] = []

    async def receive(client: httpx.AsyncClient, token: str) -> None:
        assert (await client.post(f"/webhooks/{token}")).status_code == 200
        order.append(token)

    with override_database(app, database):
        async with api_client() as client, asyncio.TaskGroup() as tasks, database.engine.connect():
            for token in [tokens[0]] * 4 + [tokens[1]]:
                tasks.create_task(receive(client, token))
            while database.pools()["writing"].waiting() < 5:  # noqa: ASYNC110
                await asyncio.sleep(0)
    assert order.index(tokens[1]) == 1
    await database.dispose()
    await join_connection_threads()
