from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.enums import FlowStatus
from bloxserver.api.models.tables import FlowRecord
from bloxserver.errors import NotFound
from bloxserver.queries.paging import Page, PageRequest


def owned_by(user_id: UUID) -> sa.ColumnElement[bool]:
    """The one condition that makes a flow a user's."""
    return FlowRecord.user_id == user_id


async def read_flow(session: AsyncSession, user_id: UUID, flow_id: UUID) -> FlowRecord:
    """The user's flow; raises `NotFound`."""
    flow = await session.scalar(sa.select(FlowRecord).where(owned_by(user_id), FlowRecord.id == flow_id))
    if flow is None:
        raise NotFound("Flow")
    return flow


async def require_flow(session: AsyncSession, user_id: UUID, flow_id: UUID) -> None:
    """Raise `NotFound` unless the flow is the user's."""
    found = await session.scalar(sa.select(FlowRecord.id).where(owned_by(user_id), FlowRecord.id == flow_id))
    if found is None:
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


async def read_unsettled_flows(session: AsyncSession, limit: int) -> list[UUID]:
    """Flows of anybody that wait for the engine to start or stop them, the longest waiting first."""
    waiting = FlowRecord.status.in_([FlowStatus.STARTING, FlowStatus.STOPPING])
    flows = await session.scalars(sa.select(FlowRecord.id).where(waiting).order_by(FlowRecord.updated_at).limit(limit))
    return list(flows)
