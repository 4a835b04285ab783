from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound
from bloxserver.models.enums import ExecutionStatus, FlowStatus
from bloxserver.models.tables import ExecutionRecord, FlowRecord
from bloxserver.queries.paging import Page, PageRequest


def owned_by(user_id: UUID) -> sa.ColumnElement[bool]:
    """The one condition that makes a flow a user's."""
    return FlowRecord.user_id == user_id


async def read_flow(session: AsyncSession, user_id: UUID, flow_id: UUID, *, lock: bool = False) -> FlowRecord:
    """The user's flow, if wanted locked until the transaction ends; raises `NotFound`."""
    wanted = sa.select(FlowRecord).where(owned_by(user_id), FlowRecord.id == flow_id)
    # as it is stored: who wrote the row in the same session may have given texts for its enums
    wanted = wanted.execution_options(populate_existing=True)
    flow = await session.scalar(wanted.with_for_update(key_share=True) if lock else wanted)
    if flow is None:
        raise NotFound("Flow")
    return flow


async def require_flow(session: AsyncSession, user_id: UUID, flow_id: UUID, *, lock: bool = False) -> None:
    """Raise `NotFound` unless the flow is the user's."""
    wanted = sa.select(FlowRecord.id).where(owned_by(user_id), FlowRecord.id == flow_id)
    if await session.scalar(wanted.with_for_update() if lock else wanted) is None:
        raise NotFound("Flow")


async def read_flows(session: AsyncSession, user_id: UUID, page: PageRequest) -> Page:
    """A page of the user's flows, the last changed first."""
    total = await count_flows(session, user_id)
    rows = await session.execute(
        sa.select(FlowRecord.id, FlowRecord.name, FlowRecord.description, FlowRecord.status, FlowRecord.updated_at)
        .where(owned_by(user_id))
        .order_by(FlowRecord.updated_at.desc(), FlowRecord.id.desc())
        .limit(page.page_size)
        .offset(page.offset)
    )
    return Page(rows.all(), total, page.page, page.page_size)


async def count_flows(session: AsyncSession, user_id: UUID) -> int:
    return await session.scalar(sa.select(sa.func.count()).select_from(FlowRecord).where(owned_by(user_id))) or 0


async def read_flows_to_reconcile(session: AsyncSession, limit: int, grace_over: datetime) -> list[UUID]:
    """Flows of anybody that the engine can start or stop now, the longest waiting first.

    One that stops waits for its executions, unless it was asked to stop before `grace_over`.
    """
    starting = FlowRecord.status == FlowStatus.STARTING
    stopping = FlowRecord.status == FlowStatus.STOPPING
    asked = FlowRecord.stop_requested_at
    over = sa.or_(asked.is_(None), asked <= grace_over, ~has_running_executions())
    flows = await session.scalars(
        sa.select(FlowRecord.id)
        .where(sa.or_(starting, sa.and_(stopping, over)))
        .order_by(FlowRecord.updated_at)
        .limit(limit)
    )
    return list(flows)


async def has_flows_to_reconcile(session: AsyncSession) -> bool:
    """Whether any flow is starting or stopping."""
    unsettled = sa.or_(FlowRecord.status == FlowStatus.STARTING, FlowRecord.status == FlowStatus.STOPPING)
    return await session.scalar(sa.select(FlowRecord.id).where(unsettled).limit(1)) is not None


def has_running_executions() -> sa.ColumnElement[bool]:
    """Whether anything of a flow has not ended yet, in a statement about flows."""
    return (
        sa.select(ExecutionRecord.id)
        .where(ExecutionRecord.flow_id == FlowRecord.id, ExecutionRecord.status == ExecutionStatus.RUNNING)
        .correlate(FlowRecord)
        .exists()
    )
