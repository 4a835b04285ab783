"""What the callers of webhooks wait for."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.models.tables import FlowRecord
from bloxserver.queries.webhook_responses import Ending, read_output, read_response
from tests.factories import create_execution
from tests.steps import create_step

RUNNING, SUCCESS, ERROR = ExecutionStatus.RUNNING, ExecutionStatus.SUCCESS, ExecutionStatus.ERROR


async def test_output_is_that_of_the_execution(session: AsyncSession, flow: FlowRecord) -> None:
    ended = await create_execution(session, flow, status=SUCCESS, output_payload="[1]")
    failed = await create_execution(session, flow, status=ERROR, error_message="why")
    assert await read_output(session, ended.id) == Ending(SUCCESS, None, "[1]")
    assert await read_output(session, failed.id) == Ending(ERROR, "why", None)


async def test_response_is_the_answer_of_the_first_block_that_has_answered(
    session: AsyncSession, flow: FlowRecord
) -> None:
    execution = await create_execution(session, flow, output_payload="[1]")
    other = await create_execution(session, flow)
    for name, sequence, handler, status in (
        ("before", 1, "echo", StepStatus.SUCCESS),
        ("failed", 2, "respond", StepStatus.ERROR),
        ("later", 4, "respond", StepStatus.SUCCESS),
        ("first", 3, "respond", StepStatus.SUCCESS),
    ):
        output = f'"{name}"'
        await create_step(
            session, execution, name, sequence=sequence, handler=handler, status=status, output_payload=output
        )
    assert await read_response(session, execution.id) == Ending(RUNNING, None, '"first"')
    assert await read_response(session, other.id) == Ending(RUNNING, None, None)


async def test_deleted_execution_is_not_found(session: AsyncSession, flow: FlowRecord) -> None:
    execution = await create_execution(session, flow)
    flow.deleted_at = now()
    await session.flush()
    for execution_id in (execution.id, uuid4()):
        assert await read_output(session, execution_id) is None
        assert await read_response(session, execution_id) is None
