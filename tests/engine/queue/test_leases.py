"""Suspending an execution that waits for executions that it called."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.leases import suspend
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, ResumptionRecord
from bloxserver.services.transitions import end_execution
from tests.engine.queue_claims import take
from tests.factories import create_execution, create_flow, create_user

ENDED = [status for status in ExecutionStatus if status is not ExecutionStatus.RUNNING]


class Caller:
    """A claimed execution, and the executions that it has called."""

    def __init__(self, database: Database, claimed: ClaimedExecution, called: list[UUID]) -> None:
        self.database = database
        self.claimed = claimed
        self.called = called
        self.awaited: list[str] = []

    async def end(self, execution_id: UUID, status: ExecutionStatus) -> None:
        async with self.database.transaction() as session:
            assert await end_execution(session, execution_id, status, parent_id=self.claimed.id)

    async def suspend(self, until: datetime) -> datetime:
        """Suspend with all called executions running, as the pump decided. Returns when the caller resumes."""
        async with self.database.transaction() as session:
            await suspend(session, self.claimed, until, self.called, self.awaited)
        return await self.resume_at()

    async def resume_at(self) -> datetime:
        async with self.database.sessions() as session:
            row = await session.get_one(ExecutionRecord, self.claimed.id)
        assert (row.status, row.lease, row.worker_id) == (ExecutionStatus.RUNNING, None, None)
        assert row.resume_at is not None
        return row.resume_at


@pytest.fixture
async def caller(live_database: Database) -> Caller:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        execution = await create_execution(session, flow)
    claimed = await take(live_database, execution)
    async with live_database.sessions() as session:
        called = [
            (await create_execution(session, flow, parent_id=claimed.id, parent_key=f"a#{number}")).id
            for number in (1, 2)
        ]
    return Caller(live_database, claimed, called)


async def test_a_caller_of_running_executions_is_suspended_until_its_time(caller: Caller) -> None:
    until = now() + timedelta(hours=1)
    assert await caller.suspend(until) == until


@pytest.mark.parametrize("status", ENDED)
async def test_a_called_execution_that_ended_before_the_suspension_wakes_its_caller(
    caller: Caller, status: ExecutionStatus
) -> None:
    """It ends after the pump's decision: nothing wakes the caller later, since it was not suspended yet."""
    await caller.end(caller.called[1], status)
    assert await caller.suspend(now() + timedelta(hours=1)) <= now()


async def test_a_called_execution_that_was_deleted_wakes_its_caller(caller: Caller) -> None:
    async with caller.database.transaction() as session:
        await session.execute(sa.delete(ExecutionRecord).where(ExecutionRecord.id == caller.called[0]))
    assert await caller.suspend(now() + timedelta(hours=1)) <= now()


async def test_a_called_execution_that_ends_after_the_suspension_wakes_its_caller(caller: Caller) -> None:
    assert await caller.suspend(now() + timedelta(hours=1)) > now()
    await caller.end(caller.called[0], ExecutionStatus.SUCCESS)
    assert await caller.resume_at() <= now()


async def test_an_execution_that_called_nothing_keeps_its_time(caller: Caller) -> None:
    caller.called = []
    until = now() + timedelta(hours=1)
    assert await caller.suspend(until) == until


@pytest.mark.parametrize(("awaited", "is_due"), [(["ask"], True), (["other"], False), ([], False)])
async def test_a_call_that_was_received_before_the_suspension_resumes_the_execution(
    caller: Caller, awaited: list[str], is_due: bool
) -> None:
    caller.called, caller.awaited = [], awaited
    async with caller.database.transaction() as session:
        session.add(ResumptionRecord(execution_id=caller.claimed.id, listener="ask", payload="1", answered_by={}))
    assert (await caller.suspend(now() + timedelta(hours=1)) <= now()) == is_due
