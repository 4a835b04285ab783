"""Ending executions, and the effects on steps, callers and called executions."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, NotFound
from bloxserver.models.database import Database
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord
from bloxserver.services.transitions import (
    CALLER_ENDED,
    CANCELLED_BY_USER,
    cancel_execution,
    cancel_executions,
    cancel_running,
    end_execution,
)
from tests.factories import create_execution, create_flow, create_user
from tests.statements import count_statements
from tests.steps import create_step

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
async def flow(session: AsyncSession) -> FlowRecord:
    return await create_flow(session, await create_user(session))


async def stored(session: AsyncSession, execution_id: UUID) -> ExecutionRecord:
    return await session.get_one(ExecutionRecord, execution_id, populate_existing=True)


async def test_a_success_without_a_caller_is_one_statement(
    session: AsyncSession, flow: FlowRecord, database_engine: AsyncEngine
) -> None:
    execution = await create_execution(session, flow, resume_at=now(), lease=uuid4())
    with count_statements(database_engine) as statements:
        assert await end_execution(session, execution.id, ExecutionStatus.SUCCESS, parent_id=None, output="1")
    assert len(statements) == 1
    ended = await stored(session, execution.id)
    assert (ended.status, ended.output_payload, ended.error_message) == (ExecutionStatus.SUCCESS, "1", None)
    assert (ended.resume_at, ended.lease) == (None, None)
    assert ended.completed_at is not None
    assert not await end_execution(session, execution.id, ExecutionStatus.ERROR, parent_id=None, error="late")
    assert (await stored(session, execution.id)).error_message is None


async def test_a_condition_that_does_not_hold_changes_nothing(session: AsyncSession, flow: FlowRecord) -> None:
    lease = uuid4()
    execution = await create_execution(session, flow, lease=lease)
    other = ExecutionRecord.lease == uuid4()
    assert not await end_execution(session, execution.id, ExecutionStatus.ERROR, other, parent_id=None)
    assert not await end_execution(session, uuid4(), ExecutionStatus.ERROR, parent_id=None)
    assert (await stored(session, execution.id)).status is ExecutionStatus.RUNNING
    ours = ExecutionRecord.lease == lease
    assert await end_execution(session, execution.id, ExecutionStatus.ERROR, ours, parent_id=None, error="why")
    assert (await stored(session, execution.id)).error_message == "why"


@pytest.mark.parametrize("microseconds", [0, 1, 499, 999, 999_499, 999_500, 999_999])
async def test_the_duration_is_in_whole_milliseconds(
    session: AsyncSession, flow: FlowRecord, microseconds: int
) -> None:
    execution = await create_execution(session, flow, started_at=NOON + timedelta(microseconds=microseconds))
    await end_execution(session, execution.id, ExecutionStatus.SUCCESS, parent_id=None)
    ended = await stored(session, execution.id)
    assert ended.completed_at is not None
    assert ended.duration_ms == (ended.completed_at - ended.started_at) // timedelta(milliseconds=1)


async def test_the_duration_is_never_negative(session: AsyncSession, flow: FlowRecord) -> None:
    execution = await create_execution(session, flow, started_at=now() + timedelta(hours=1))
    await end_execution(session, execution.id, ExecutionStatus.SUCCESS, parent_id=None)
    assert (await stored(session, execution.id)).duration_ms == 0


async def test_a_failure_closes_open_steps(session: AsyncSession, flow: FlowRecord) -> None:
    execution, other = await create_execution(session, flow), await create_execution(session, flow)
    waiting = await create_step(
        session, execution, sequence=3, status=StepStatus.WAITING, started_at=NOON, completed_at=now() + timedelta(1)
    )
    success = await create_step(session, execution, "b", sequence=2, started_at=NOON, completed_at=NOON)
    elsewhere = await create_step(session, other, sequence=1, status=StepStatus.RUNNING)
    assert await end_execution(session, execution.id, ExecutionStatus.TIMEOUT, parent_id=None)
    for step in (waiting, success, elsewhere):
        await session.refresh(step)
    assert (waiting.status, waiting.sequence) == (StepStatus.CANCELLED, 4)
    assert waiting.completed_at is not None
    assert NOON < waiting.completed_at <= now()
    assert waiting.duration_ms == (waiting.completed_at - NOON) // timedelta(milliseconds=1)
    assert (success.status, success.sequence, success.completed_at) == (StepStatus.SUCCESS, 2, NOON)
    assert (elsewhere.status, elsewhere.sequence) == (StepStatus.RUNNING, 1)


async def test_waiting_caller_resumes(session: AsyncSession, flow: FlowRecord) -> None:
    later = now() + timedelta(days=1)
    suspended = await create_execution(session, flow, resume_at=later)
    busy = await create_execution(session, flow, resume_at=later, lease=uuid4())
    over = await create_execution(session, flow, resume_at=later, status=ExecutionStatus.CANCELLED)
    for parent in (suspended, busy, over):
        child = await create_execution(session, flow, parent_id=parent.id, parent_key="k:1")
        assert await end_execution(session, child.id, ExecutionStatus.SUCCESS, parent_id=parent.id)
    resume_at = (await stored(session, suspended.id)).resume_at
    assert resume_at is not None
    assert resume_at <= now()
    assert (await stored(session, busy.id)).resume_at == later
    assert (await stored(session, over.id)).resume_at == later


async def test_called_executions_end_with_their_caller(session: AsyncSession, flow: FlowRecord) -> None:
    root = await create_execution(session, flow)
    called = await create_execution(session, flow, parent_id=root.id, parent_key="a:1")
    deeper = await create_execution(session, flow, parent_id=called.id, parent_key="b:1")
    done = await create_execution(
        session, flow, parent_id=root.id, parent_key="c:1", status=ExecutionStatus.SUCCESS, output_payload="1"
    )
    step = await create_step(session, deeper, status=StepStatus.RUNNING)
    assert await end_execution(session, root.id, ExecutionStatus.ERROR, parent_id=None, error="why")
    for execution in (called, deeper):
        ended = await stored(session, execution.id)
        assert (ended.status, ended.error_message) == (ExecutionStatus.CANCELLED, CALLER_ENDED)
    assert (await stored(session, done.id)).status is ExecutionStatus.SUCCESS
    await session.refresh(step)
    assert step.status is StepStatus.CANCELLED


async def test_many_executions_are_cancelled_together(
    session: AsyncSession, flow: FlowRecord, database_engine: AsyncEngine
) -> None:
    parent = await create_execution(session, flow, resume_at=now() + timedelta(days=1))
    child = await create_execution(session, flow, parent_id=parent.id, parent_key="a:1")
    others = [await create_execution(session, flow) for _ in range(20)]
    done = await create_execution(session, flow, status=ExecutionStatus.SUCCESS)
    await session.commit()
    with count_statements(database_engine) as statements:
        ids = [execution.id for execution in (child, *others, done)]
        assert await cancel_executions(session, ids, "why") == 21
    assert len(statements) == 6
    cancelled = await session.scalars(
        sa.select(ExecutionRecord.id).where(ExecutionRecord.status == ExecutionStatus.CANCELLED)
    )
    assert set(cancelled) == {child.id, *(other.id for other in others)}
    resume_at = (await stored(session, parent.id)).resume_at
    assert resume_at is not None
    assert resume_at <= now()


async def test_caller_that_suspends_concurrently_is_resumed(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        parent = await create_execution(session, flow, lease=uuid4())
        child = await create_execution(session, flow, parent_id=parent.id, parent_key="a:1")

    async def end_child() -> bool:
        async with live_database.transaction() as session:
            return await end_execution(session, child.id, ExecutionStatus.SUCCESS, parent_id=parent.id)

    async with live_database.transaction() as session:
        parks = sa.update(ExecutionRecord).where(ExecutionRecord.id == parent.id)
        await session.execute(parks.values(lease=None, resume_at=now() + timedelta(days=1)))
        ending = asyncio.create_task(end_child())
        await asyncio.wait({ending}, timeout=0.3)
        assert not ending.done(), "it waits for the caller"
    assert await ending
    async with live_database.sessions() as session:
        resume_at = (await stored(session, parent.id)).resume_at
        assert resume_at is not None
        assert resume_at <= now()


async def test_execution_ends_once_under_concurrency(live_database: Database) -> None:
    async with live_database.sessions() as session:
        execution = await create_execution(session, await create_flow(session, await create_user(session)))

    async def end(status: ExecutionStatus) -> bool:
        async with live_database.transaction() as session:
            return await end_execution(session, execution.id, status, parent_id=None, error=status.value)

    ends = [ExecutionStatus.SUCCESS, ExecutionStatus.ERROR, ExecutionStatus.TIMEOUT, ExecutionStatus.CANCELLED]
    won = await asyncio.gather(*map(end, ends))
    assert won.count(True) == 1
    async with live_database.sessions() as session:
        ended = await stored(session, execution.id)
        assert ended.error_message == ended.status.value == ends[won.index(True)].value


async def test_running_execution_is_cancelled_and_a_cancelled_one_stays_as_it_is(
    session: AsyncSession, flow: FlowRecord
) -> None:
    execution = await create_execution(session, flow)
    cancelled = await cancel_execution(session, flow.user_id, flow.id, execution.id)
    assert (cancelled.status, cancelled.error_message) == (ExecutionStatus.CANCELLED, CANCELLED_BY_USER)
    completed_at = cancelled.completed_at
    assert completed_at is not None
    again = await cancel_execution(session, flow.user_id, flow.id, execution.id)
    assert (again.status, again.completed_at) == (ExecutionStatus.CANCELLED, completed_at)


@pytest.mark.parametrize("status", [ExecutionStatus.SUCCESS, ExecutionStatus.ERROR, ExecutionStatus.TIMEOUT])
async def test_cancelling_an_ended_execution_is_rejected(
    session: AsyncSession, flow: FlowRecord, status: ExecutionStatus
) -> None:
    execution = await create_execution(session, flow, status=status)
    with pytest.raises(BadRequest) as error:
        await cancel_execution(session, flow.user_id, flow.id, execution.id)
    assert (error.value.code, error.value.status) == ("execution_ended", 400)
    assert (await stored(session, execution.id)).status is status


async def test_execution_of_another_user_is_not_cancelled(session: AsyncSession, flow: FlowRecord) -> None:
    execution, other = await create_execution(session, flow), await create_user(session)
    with pytest.raises(NotFound) as error:
        await cancel_execution(session, other.id, flow.id, execution.id)
    assert (error.value.code, error.value.status) == ("execution_not_found", 404)
    assert (await stored(session, execution.id)).status is ExecutionStatus.RUNNING


async def test_running_executions_of_a_flow_are_cancelled_with_the_reason(
    session: AsyncSession, flow: FlowRecord
) -> None:
    running = [await create_execution(session, flow) for _ in range(2)]
    ended = await create_execution(session, flow, status=ExecutionStatus.SUCCESS)
    unrelated = await create_execution(session, await create_flow(session, await create_user(session)))
    assert await cancel_running(session, flow.id, "The flow was stopped.") == 2
    assert await cancel_running(session, flow.id, "The flow was stopped.") == 0
    for execution in running:
        cancelled = await stored(session, execution.id)
        assert (cancelled.status, cancelled.error_message) == (ExecutionStatus.CANCELLED, "The flow was stopped.")
    assert (await stored(session, ended.id)).status is ExecutionStatus.SUCCESS
    assert (await stored(session, unrelated.id)).status is ExecutionStatus.RUNNING
