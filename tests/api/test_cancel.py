"""Cancelling an execution."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import ExecutionStatus, FlowRecord, UserRecord
from tests import factories
from tests.api.contract import UTC_TIME, assert_problem, covers, path_of
from tests.steps import create_step


@covers("executions.cancel")
async def test_running_execution_is_cancelled_with_its_steps(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
) -> None:
    execution = await factories.create_execution(session, flow, picked_up_at=now(), lease=uuid4())
    step = await create_step(session, execution, status=StepStatus.WAITING)
    path = f"{path_of(flow)}/executions/{execution.id}"
    answer = await client.post(f"{path}/cancel")
    body = answer.json()
    assert (answer.status_code, body["status"], body["errorMessage"]) == (200, "cancelled", "Cancelled by the user")
    assert UTC_TIME.fullmatch(body["completedAt"])
    assert body["durationMs"] >= 0
    assert (await client.get(path)).json() == body
    await session.refresh(execution)
    await session.refresh(step)
    assert (execution.lease, step.status) == (None, StepStatus.CANCELLED)

    again = await client.post(f"{path}/cancel")
    assert (again.status_code, again.json()) == (200, body), "cancelling is idempotent"


@covers("executions.cancel.refused")
@pytest.mark.parametrize("status", [ExecutionStatus.SUCCESS, ExecutionStatus.ERROR, ExecutionStatus.TIMEOUT])
async def test_ended_execution_cannot_be_cancelled(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, status: ExecutionStatus
) -> None:
    execution = await factories.create_execution(session, flow, status=status, output_payload="1")
    refused = await client.post(f"{path_of(flow)}/executions/{execution.id}/cancel")
    assert_problem(refused, 400, "execution_ended", f"Cannot cancel execution in {status.value} state")
    await session.refresh(execution)
    assert (execution.status, execution.output_payload) == (status, "1")


async def test_called_executions_are_cancelled_and_the_caller_continues(
    client: httpx.AsyncClient, flow: FlowRecord, dev_user: UserRecord, session: AsyncSession
) -> None:
    other = await factories.create_flow(session, dev_user)
    later = now().replace(year=2100)
    caller = await factories.create_execution(session, other, resume_at=later)
    execution = await factories.create_execution(session, flow, parent_id=caller.id, parent_key="a:1")
    called = await factories.create_execution(session, other, parent_id=execution.id, parent_key="b:1")
    answer = (await client.post(f"{path_of(flow)}/executions/{execution.id}/cancel")).json()
    assert answer["parentId"] == str(caller.id)
    await session.refresh(caller)
    await session.refresh(called)
    assert called.status is ExecutionStatus.CANCELLED
    assert caller.status is ExecutionStatus.RUNNING
    assert caller.resume_at is not None
    assert caller.resume_at <= now()


async def test_unknown_execution_is_not_found(
    client: httpx.AsyncClient, flow: FlowRecord, dev_user: UserRecord, session: AsyncSession
) -> None:
    elsewhere = await factories.create_execution(session, await factories.create_flow(session, dev_user))
    for execution_id in (uuid4(), elsewhere.id):
        refused = await client.post(f"{path_of(flow)}/executions/{execution_id}/cancel")
        assert_problem(refused, 404, "execution_not_found", "Execution not found")
    await session.refresh(elsewhere)
    assert elsewhere.status is ExecutionStatus.RUNNING
