"""Waits of executions for calls."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord, FlowRecord, ResumptionRecord
from bloxserver.queries.resumptions import read_received, read_resumed, read_wait
from tests.factories import create_execution

FUTURE, PAST = timedelta(hours=1), timedelta(hours=-1)
CLIENT: dict[str, str | None] = {"address": None, "user_agent": None, "name": None, "answered_at": "2026-01-01"}


@pytest.fixture
async def execution(session: AsyncSession, flow: FlowRecord) -> ExecutionRecord:
    return await create_execution(session, flow)


async def add_step(session: AsyncSession, execution: ExecutionRecord, status: StepStatus, **values: Any) -> None:
    key = f":ask:{uuid4()}"
    session.add(ExecutionStepRecord(execution_id=execution.id, key=key, listener="ask", status=status, **values))
    await session.flush()


async def add_call(session: AsyncSession, execution: ExecutionRecord) -> None:
    session.add(ResumptionRecord(execution_id=execution.id, listener="ask", payload="1", answered_by=CLIENT))
    await session.flush()


@pytest.mark.parametrize("lock", [False, True])
async def test_wait_that_has_not_begun_is_open(
    session: AsyncSession, execution: ExecutionRecord, flow: FlowRecord, lock: bool
) -> None:
    wait = await read_wait(session, execution.id, "ask", lock=lock)
    assert (wait.is_answered, wait.output, wait.user_id) == (False, None, flow.user_id)
    assert wait.organism_yaml == flow.organism_yaml


async def test_waiting_step_has_the_question(session: AsyncSession, execution: ExecutionRecord) -> None:
    await add_step(session, execution, StepStatus.WAITING, completed_at=now() + FUTURE, output_payload="{}")
    await add_step(session, execution, StepStatus.ERROR, error_code="wait_repeated")
    assert (await read_wait(session, execution.id, "ask")).output == "{}"


@pytest.mark.parametrize("status", [StepStatus.SUCCESS, StepStatus.ERROR, StepStatus.CANCELLED, StepStatus.WAITING])
async def test_wait_that_is_over_is_not_found(
    session: AsyncSession, execution: ExecutionRecord, status: StepStatus
) -> None:
    await add_step(session, execution, status, completed_at=now() + PAST)
    with pytest.raises(NotFound):
        await read_wait(session, execution.id, "ask")


@pytest.mark.parametrize("status", [status for status in ExecutionStatus if status is not ExecutionStatus.RUNNING])
async def test_ended_execution_has_no_open_wait(
    session: AsyncSession, execution: ExecutionRecord, status: ExecutionStatus
) -> None:
    await session.execute(sa.update(ExecutionRecord).values(status=status))
    with pytest.raises(NotFound):
        await read_wait(session, execution.id, "ask")
    await add_call(session, execution)
    assert (await read_wait(session, execution.id, "ask")).is_answered


async def test_deleted_flow_has_no_waits(session: AsyncSession, execution: ExecutionRecord) -> None:
    await add_call(session, execution)
    await session.execute(sa.update(FlowRecord).values(deleted_at=now()))
    for id in (execution.id, uuid4()):
        with pytest.raises(NotFound):
            await read_wait(session, id, "ask")


async def test_calls_are_read_by_execution_and_listener(session: AsyncSession, execution: ExecutionRecord) -> None:
    assert await read_received(session, execution.id) == {}
    await add_call(session, execution)
    assert await read_received(session, execution.id) == {"ask": "1"}
    assert await read_resumed(session, [execution.id, uuid4()]) == {execution.id: {"ask"}}
