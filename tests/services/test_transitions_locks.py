"""Concurrent transactions on the same executions: one waits for the other, and none fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.retry import retry_transaction
from bloxserver.engine.run.flow_calls import CallingExecution, call_flow
from bloxserver.errors import BloxError
from bloxserver.ids import new_id
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, FlowRecord, TriggerRecord, UserRecord
from bloxserver.plans import FREE
from bloxserver.queries.executions import read_execution
from bloxserver.queries.usage import period_at
from bloxserver.services.deletions import delete_flow, delete_trigger
from bloxserver.services.retries import RetryFrom, RetryVersion, retry_execution
from bloxserver.services.transitions import cancel_execution, cancel_running, end_execution
from tests.factories import create_execution, create_flow, create_trigger, create_user
from tests.lock_waits import wait_for_lock_wait

Change = Callable[[AsyncSession], Awaitable[Any]]
AT_ONCE = sa.text("SET LOCAL lock_timeout = '500ms'")
PERIOD = period_at(now(), None, None)


class World:
    """A flow with two running executions, of which the one with the smaller id is stored after the other."""

    user: UserRecord
    flow: FlowRecord
    trigger: TriggerRecord
    first: ExecutionRecord
    second: ExecutionRecord

    def __init__(self, database: Database) -> None:
        self.database = database

    async def arrange(self) -> None:
        smaller, larger = new_id(), new_id()
        async with self.database.sessions() as session:
            self.user = await create_user(session)
            self.flow = await create_flow(session, self.user, name="Itself")
            self.trigger = await create_trigger(session, self.flow)
            values = {"trigger_id": self.trigger.id}
            self.second = await create_execution(session, self.flow, id=larger, **values)
            self.first = await create_execution(session, self.flow, id=smaller, **values)

    async def do(self, change: Change) -> Any:
        async with self.database.transaction() as session:
            return await change(session)

    @asynccontextmanager
    async def meanwhile(self, change: Change) -> AsyncIterator[asyncio.Task[Any]]:
        """Run a change that has started and waits for a lock of another transaction."""
        changing = asyncio.create_task(self.do(change))
        await wait_for_lock_wait(self.database, changing)
        yield changing

    def calling(self, caller: UUID) -> CallingExecution:
        return CallingExecution(id=caller, user_id=self.user.id, depth=0, key="a:1", lease=None)

    def call(self, session: AsyncSession) -> Awaitable[UUID]:
        return call_flow(session, caller=self.calling(self.first.id), flow="Itself", payload=None, target=None)

    def delete(self, session: AsyncSession) -> Awaitable[None]:
        return delete_flow(session, self.user.id, self.flow.id)

    def delete_trigger(self, session: AsyncSession) -> Awaitable[None]:
        return delete_trigger(session, self.user.id, self.flow.id, self.trigger.id)

    def stop(self, session: AsyncSession) -> Awaitable[int]:
        return cancel_running(session, self.flow.id, "stopped")


@pytest.fixture
async def world(live_database: Database, backend: str) -> World:
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")
    world = World(live_database)
    await world.arrange()
    return world


def locked(execution: ExecutionRecord) -> sa.Select[Any]:
    return sa.select(ExecutionRecord.id).where(ExecutionRecord.id == execution.id).with_for_update()


@pytest.mark.parametrize("name", ["delete", "delete_trigger", "stop"])
async def test_executions_are_locked_in_the_order_of_their_ids(world: World, name: str) -> None:
    """A transaction with the first lock gets the second: the other one waits for the first, and holds none."""
    change: Change = getattr(world, name)
    async with world.database.transaction() as session:
        await session.execute(locked(world.first))
        async with world.meanwhile(change) as changing:
            await session.execute(AT_ONCE)
            assert await session.scalar(locked(world.second)) == world.second.id
    await changing


async def test_a_flow_is_locked_before_its_executions(world: World) -> None:
    """A deletion locks the flow, then its executions. Recursive calls and retries must use the same order."""
    async with world.database.sessions() as session:
        ended = await create_execution(session, world.flow, status=ExecutionStatus.ERROR)

    def retry(session: AsyncSession) -> Awaitable[ExecutionRecord]:
        ids = world.flow.id, ended.id
        return retry_execution(
            session, world.user.id, FREE, PERIOD, *ids, begin=RetryFrom.FAILED, version=RetryVersion.SAME
        )

    for change in (world.call, retry):
        async with world.database.transaction() as session:
            await session.execute(sa.select(FlowRecord.id).where(FlowRecord.id == world.flow.id).with_for_update())
            async with world.meanwhile(change) as changing:
                await session.execute(AT_ONCE)
                for execution in (world.first, world.second, ended):
                    assert await session.scalar(locked(execution)) == execution.id
        await changing


async def test_retry_prevents_the_deletion_of_its_original(world: World) -> None:
    async with world.database.sessions() as session:
        ended = await create_execution(session, world.flow, status=ExecutionStatus.ERROR)

    async def delete(session: AsyncSession) -> None:
        await session.execute(sa.delete(ExecutionRecord).where(ExecutionRecord.id == ended.id))

    async with world.database.transaction() as session:
        original = await read_execution(session, world.user.id, world.flow.id, ended.id, lock=True)
        async with world.meanwhile(delete) as deleting:
            assert original.status is ExecutionStatus.ERROR
    await deleting


async def test_recursive_flow_is_deleted_during_concurrent_writes(live_database: Database) -> None:
    for _ in range(10):
        world = World(live_database)
        await world.arrange()

        async def end(session: AsyncSession, world: World = world) -> None:
            called = await world.call(session)
            await end_execution(session, called, ExecutionStatus.SUCCESS, parent_id=world.first.id)

        async def cancel(session: AsyncSession, world: World = world) -> None:
            await cancel_execution(session, world.user.id, world.flow.id, world.first.id)

        changes: list[Change] = [world.call, end, world.stop, cancel, world.delete_trigger, world.delete]
        # The engine retries transactions that the database aborts, and clients retry after a 503.
        done = [retry_transaction(live_database, change) for change in changes]
        results = await asyncio.gather(*done, return_exceptions=True)
        assert results[-1] is None
        failures = [result for result in results if isinstance(result, BaseException)]
        assert all(isinstance(failure, BloxError) for failure in failures), failures
        async with live_database.sessions() as session:
            assert await session.scalar(sa.select(FlowRecord.id).where(FlowRecord.id == world.flow.id)) is None
