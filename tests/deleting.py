"""Flows and triggers that are too large to be deleted in a request."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, ExecutionStepRecord, FlowRecord, TriggerType
from bloxserver.services.deletions import MAX_EXECUTIONS

LARGE = MAX_EXECUTIONS + 1


async def add_executions(
    session: AsyncSession, flow: FlowRecord, number: int = LARGE, *, steps: int = 0, size: int = 10, **values: Any
) -> None:
    """Add ended executions, each with `steps` steps, whose outputs are `size` incompressible bytes."""
    began = now() - timedelta(hours=1)
    defaults = {"trigger_type": TriggerType.MANUAL, "status": ExecutionStatus.SUCCESS, "started_at": began}
    executions = [{"id": new_id(), "flow_id": flow.id} | defaults | values for _ in range(number)]
    await session.execute(sa.insert(ExecutionRecord), executions)
    rows = [
        {"execution_id": execution["id"], "key": str(key), "listener": "a", "output_payload": _text(size)}
        for execution in executions
        for key in range(steps)
    ]
    if rows:
        await session.execute(sa.insert(ExecutionStepRecord), rows)
    await session.commit()


async def count(session: AsyncSession, table: type[Any], *conditions: Any) -> int:
    """The number of the table's rows that meet the conditions."""
    return await session.scalar(sa.select(sa.func.count()).select_from(table).where(*conditions)) or 0


def _text(size: int) -> str:
    return random.randbytes(size // 2).hex()  # noqa: S311
