"""The flows of a user that run, in the order in which a smaller plan keeps them running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from bloxserver.models.enums import FlowStatus
from bloxserver.models.tables import ExecutionRecord, FlowRecord
from bloxserver.queries.execution_places import NORMAL
from bloxserver.queries.requesters import owned_by

ACTIVE = (FlowStatus.STARTING, FlowStatus.RUNNING)
"""The statuses of flows that run, or will run without another request."""
STOPPED_BY_PLAN = "Stopped because the plan allows fewer running flows"
"""The `error_message` of a flow that a smaller plan has stopped. A start clears it."""


def number_running(user_id: UUID) -> sa.ScalarSelect[int]:
    """The number of the user's flows that run, for use in another statement."""
    other = aliased(FlowRecord)
    running = sa.select(sa.func.count()).select_from(other).where(owned_by(user_id, other), other.status.in_(ACTIVE))
    return running.scalar_subquery()


async def read_running(session: AsyncSession, user_id: UUID, limit: int | None = None) -> Sequence[Any]:
    """The flows that run: those with the most recent executions first, then those without any, the oldest first.

    Rows have `id`, `name` and `status`.
    """
    last_run = (
        sa.select(sa.func.max(ExecutionRecord.started_at))
        .where(ExecutionRecord.flow_id == FlowRecord.id, ExecutionRecord.mode == NORMAL)
        .correlate(FlowRecord)
        .scalar_subquery()
    )
    wanted = (
        sa.select(FlowRecord.id, FlowRecord.name, FlowRecord.status)
        .where(owned_by(user_id), FlowRecord.status.in_(ACTIVE))
        .order_by(last_run.desc().nulls_last(), FlowRecord.created_at, FlowRecord.id)
    )
    return (await session.execute(wanted.limit(limit))).all()


async def read_stopped_by_plan(session: AsyncSession, user_id: UUID, limit: int) -> Sequence[Any]:
    """The flows that a smaller plan has stopped, and that were not started since. Rows have `id` and `name`."""
    wanted = sa.select(FlowRecord.id, FlowRecord.name).where(
        owned_by(user_id),
        FlowRecord.status.in_((FlowStatus.STOPPING, FlowStatus.STOPPED)),
        FlowRecord.error_message == STOPPED_BY_PLAN,
    )
    return (await session.execute(wanted.order_by(FlowRecord.name, FlowRecord.id).limit(limit))).all()
