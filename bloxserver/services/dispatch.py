from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.enums import ExecutionStatus
from bloxserver.api.models.tables import ExecutionRecord
from bloxserver.api.models.types import now


async def mark_dispatched(session: AsyncSession, jobs: Sequence[tuple[UUID, int]]) -> None:
    """Note that these executions, each with its dispatch number, were handed over."""
    await session.execute(
        sa.update(ExecutionRecord)
        .where(
            sa.tuple_(ExecutionRecord.id, ExecutionRecord.dispatch_number).in_(jobs),
            ExecutionRecord.dispatched_at.is_(None),
        )
        .values(dispatched_at=now())
    )


async def forget_dispatches(session: AsyncSession) -> None:
    """Have all running executions handed over again; those that the engine still knows, it takes for the same."""
    await session.execute(
        sa.update(ExecutionRecord)
        .where(ExecutionRecord.status == ExecutionStatus.RUNNING, ExecutionRecord.dispatched_at.is_not(None))
        .values(dispatched_at=None)
    )
