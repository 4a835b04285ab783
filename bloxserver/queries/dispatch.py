"""Which executions are due to be handed to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.enums import ExecutionStatus, Tier
from bloxserver.api.models.tables import ExecutionRecord, FlowRecord, UserRecord


class DueExecution(NamedTuple):
    execution_id: UUID
    number: int
    user_id: UUID
    tier: str


async def read_due_executions(
    session: AsyncSession, now: datetime, places_by_tier: Mapping[str, int], limit: int
) -> list[DueExecution]:
    """The next executions to hand over, users in rotation, the oldest of each first.

    `places_by_tier` says how many executions of a user may be with the engine: the rest stay here, where they delay
    nobody.
    """
    running = ExecutionRecord.status == ExecutionStatus.RUNNING
    with_engine = (
        sa.select(FlowRecord.user_id, sa.func.count().label("count"))
        .select_from(ExecutionRecord)
        .join(FlowRecord, FlowRecord.id == ExecutionRecord.flow_id)
        .where(running, ExecutionRecord.dispatched_at.is_not(None))
        .group_by(FlowRecord.user_id)
        .subquery()
    )
    tier = sa.func.coalesce(UserRecord.tier, Tier.FREE.value)
    place = sa.func.row_number().over(
        partition_by=FlowRecord.user_id, order_by=(ExecutionRecord.started_at, ExecutionRecord.id)
    )
    waiting = (
        sa.select(
            ExecutionRecord.id,
            ExecutionRecord.dispatch_number,
            ExecutionRecord.started_at,
            FlowRecord.user_id,
            sa.cast(tier, sa.String).label("tier"),
            (place + sa.func.coalesce(with_engine.c.count, 0)).label("place"),
        )
        .join(FlowRecord, FlowRecord.id == ExecutionRecord.flow_id)
        .outerjoin(UserRecord, UserRecord.id == FlowRecord.user_id)
        .outerjoin(with_engine, with_engine.c.user_id == FlowRecord.user_id)
        .where(
            running,
            ExecutionRecord.dispatched_at.is_(None),
            sa.or_(ExecutionRecord.resume_at.is_(None), ExecutionRecord.resume_at <= now),
        )
        .subquery()
    )
    places = sa.case(places_by_tier, value=waiting.c.tier, else_=places_by_tier[Tier.FREE.value])
    rows = await session.execute(
        sa.select(waiting.c.id, waiting.c.dispatch_number, waiting.c.user_id, waiting.c.tier)
        .where(waiting.c.place <= places)
        .order_by(waiting.c.place, waiting.c.started_at, waiting.c.id)
        .limit(limit)
    )
    return [DueExecution(*row) for row in rows]


async def read_next_resume(session: AsyncSession, now: datetime) -> datetime | None:
    """When the next parked execution is due, of those that are not: one that is due waits for a place."""
    return await session.scalar(
        sa.select(sa.func.min(ExecutionRecord.resume_at)).where(
            ExecutionRecord.status == ExecutionStatus.RUNNING,
            ExecutionRecord.dispatched_at.is_(None),
            ExecutionRecord.resume_at > now,
        )
    )
