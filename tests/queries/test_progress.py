"""The progress of watched executions."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import FlowRecord, UserRecord
from bloxserver.queries.progress import read_progress
from tests.factories import create_execution, create_flow
from tests.statements import count_statements
from tests.steps import create_step


async def test_progress_of_several_executions_is_read_in_one_statement(
    session: AsyncSession, flow: FlowRecord, database_engine: AsyncEngine
) -> None:
    running = await create_execution(session, flow)
    ended = await create_execution(session, flow, status=ExecutionStatus.ERROR)
    without_steps = await create_execution(session, flow)
    for execution, sequence in ((running, 1), (running, 7), (ended, 2)):
        await create_step(session, execution, f"l{sequence}", sequence=sequence)
    ids = [running.id, ended.id, without_steps.id, uuid4(), running.id]
    with count_statements(database_engine) as statements:
        progress = await read_progress(session, ids)
    assert progress == {
        running.id: (ExecutionStatus.RUNNING, 7),
        ended.id: (ExecutionStatus.ERROR, 2),
        without_steps.id: (ExecutionStatus.RUNNING, None),
    }
    assert len(statements) == 1
    with count_statements(database_engine) as statements:
        progress = await read_progress(session, ids, with_steps=False)
    assert progress == {
        running.id: (ExecutionStatus.RUNNING, None),
        ended.id: (ExecutionStatus.ERROR, None),
        without_steps.id: (ExecutionStatus.RUNNING, None),
    }
    assert len(statements) == 1


async def test_progress_of_deleted_flows_and_unknown_ids_is_left_out(session: AsyncSession, user: UserRecord) -> None:
    deleted = await create_execution(session, await create_flow(session, user, deleted_at=now()))
    assert await read_progress(session, [deleted.id, uuid4()]) == {}
    assert await read_progress(session, []) == {}
