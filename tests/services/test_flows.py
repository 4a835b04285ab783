"""Starting, stopping and deleting flows, and the effects on their rows and callers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    FailureNotificationRecord,
    FlowRecord,
    FlowStatus,
    KeyValueRecord,
    NotificationChannel,
    UserRecord,
)
from bloxserver.queries.flows import read_flows_to_reconcile
from bloxserver.services.deletions import delete_flow
from bloxserver.services.flows import start_flow, stop_flow
from tests.factories import create_execution, create_flow, create_user


@pytest.fixture
async def user(session: AsyncSession) -> UserRecord:
    return await create_user(session)


async def counted(session: AsyncSession, table: type[Any]) -> int:
    return await session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


async def test_stop_stores_its_request_time_and_start_clears_it(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    before = now()
    await stop_flow(session, user.id, flow.id)
    assert flow.stop_requested_at is not None
    assert before <= flow.stop_requested_at <= now()
    flow.status = FlowStatus.STOPPED
    await session.flush()
    assert (await start_flow(session, user.id, flow.id)).stop_requested_at is None


async def test_flows_to_reconcile_are_read(session: AsyncSession, user: UserRecord) -> None:
    moment = now()
    stopping = {"status": FlowStatus.STOPPING}
    recent, old = moment - timedelta(seconds=5), moment - timedelta(seconds=60)
    flows = {
        "starting": await create_flow(session, user, status=FlowStatus.STARTING),
        "idle": await create_flow(session, user, **stopping, stop_requested_at=recent),
        "busy": await create_flow(session, user, **stopping, stop_requested_at=recent),
        "over": await create_flow(session, user, **stopping, stop_requested_at=old),
        "by hand": await create_flow(session, user, **stopping),
        "running": await create_flow(session, user),
        "stopped": await create_flow(session, user, status=FlowStatus.STOPPED),
    }
    for name in flows.keys() - {"idle"}:
        await create_execution(session, flows[name])
    await create_execution(session, flows["idle"], status=ExecutionStatus.SUCCESS)
    grace_over = moment - timedelta(seconds=30)
    settleable = await read_flows_to_reconcile(session, 100, grace_over)
    assert settleable == [flows[name].id for name in ("starting", "idle", "over", "by hand")]
    assert await read_flows_to_reconcile(session, 2, grace_over) == settleable[:2]


async def test_flow_is_deleted_with_its_rows(session: AsyncSession, user: UserRecord) -> None:
    for _ in range(2):
        flow = await create_flow(session, user)
        execution = await create_execution(session, flow)
        session.add(KeyValueRecord(flow_id=flow.id, key="k"))
        session.add(FailureNotificationRecord(execution_id=execution.id, channel=NotificationChannel.URL, due_at=now()))
        await session.commit()
    await delete_flow(session, user.id, flow.id)
    await session.commit()
    for table in (KeyValueRecord, FailureNotificationRecord, ExecutionRecord, FlowRecord):
        assert await counted(session, table) == 1, table


async def test_caller_of_a_deleted_flow_resumes(session: AsyncSession, user: UserRecord) -> None:
    flow, other = await create_flow(session, user), await create_flow(session, user)
    later = now() + timedelta(days=1)

    async def caller(status: ExecutionStatus, **values: Any) -> ExecutionRecord:
        execution = await create_execution(session, other, resume_at=later, **values)
        await create_execution(session, flow, parent_id=execution.id, parent_key="a:1", status=status)
        return execution

    waiting = await caller(ExecutionStatus.RUNNING)
    working = await caller(ExecutionStatus.RUNNING, lease=uuid4())
    answered = await caller(ExecutionStatus.SUCCESS)
    unrelated = await create_execution(session, other, resume_at=later)
    await delete_flow(session, user.id, flow.id)
    await session.commit()
    for execution in (waiting, working, answered, unrelated):
        await session.refresh(execution)
    assert waiting.resume_at is not None
    assert waiting.resume_at <= now()
    assert {one.resume_at for one in (working, answered, unrelated)} == {later}
