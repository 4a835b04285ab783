from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import BadRequest
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord
from bloxserver.queries.executions import read_execution
from bloxserver.services.transitions import BATCH, cancel_executions, end_execution

BY_USER = "Cancelled by the user"


async def cancel_execution(session: AsyncSession, user_id: UUID, flow_id: UUID, execution_id: UUID) -> ExecutionRecord:
    """End a running execution as cancelled; one that was cancelled before is returned as it is.

    Raises `NotFound`, and `BadRequest` (`execution_ended`) where it has come to another end.
    """
    execution = await read_execution(session, user_id, flow_id, execution_id)
    if execution.status is ExecutionStatus.RUNNING:
        cancelled = ExecutionStatus.CANCELLED
        await end_execution(session, execution_id, cancelled, parent_id=execution.parent_id, error=BY_USER)
        execution = await read_execution(session, user_id, flow_id, execution_id)
    if execution.status is not ExecutionStatus.CANCELLED:
        raise BadRequest("execution_ended", f"Cannot cancel execution in {execution.status.value} state")
    return execution


async def cancel_running(session: AsyncSession, flow_id: UUID, reason: str) -> int:
    """End a batch of the flow's running executions as cancelled, callers first; 0 when none is left."""
    running = await session.scalars(
        sa.select(ExecutionRecord.id)
        .where(ExecutionRecord.flow_id == flow_id, ExecutionRecord.status == ExecutionStatus.RUNNING)
        .order_by(ExecutionRecord.depth, ExecutionRecord.id)
        .limit(BATCH)
    )
    return await cancel_executions(session, running.all(), reason)
