from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound
from bloxserver.models.tables import ExecutionRecord, FlowRecord, FlowVersionRecord
from bloxserver.queries.paging import Page, PageRequest, read_rows
from bloxserver.queries.requesters import owned_by


async def read_versions(session: AsyncSession, user_id: UUID, flow_id: UUID, page: PageRequest) -> Page:
    """A page of the versions of the user's flow, the newest first, without their texts; raises `NotFound`."""
    of_flow = FlowVersionRecord.flow_id == flow_id
    count = sa.select(sa.func.count()).select_from(FlowVersionRecord).where(of_flow).scalar_subquery()
    total = await session.scalar(
        sa.select(count).select_from(FlowRecord).where(owned_by(user_id), FlowRecord.id == flow_id)
    )
    if total is None:
        raise NotFound("Flow")
    rows = await read_rows(
        session,
        sa.select(FlowVersionRecord.number, FlowVersionRecord.created_at, *_marks())
        .join(FlowRecord, FlowRecord.id == FlowVersionRecord.flow_id)
        .where(of_flow)
        .order_by(FlowVersionRecord.number.desc())
        .limit(page.page_size)
        .offset(page.offset),
    )
    return Page(rows, total, page.page, page.page_size)


async def read_version(session: AsyncSession, user_id: UUID, flow_id: UUID, number: int) -> sa.Row[Any]:
    """One version of the user's flow with its texts; raises `NotFound`."""
    version: sa.Row[Any] | None = (
        await session.execute(
            sa.select(
                FlowVersionRecord.number,
                FlowVersionRecord.created_at,
                FlowVersionRecord.organism_yaml,
                FlowVersionRecord.canvas_state,
                *_marks(),
            )
            .join(FlowRecord, FlowRecord.id == FlowVersionRecord.flow_id)
            .where(owned_by(user_id), FlowRecord.id == flow_id, FlowVersionRecord.number == number)
        )
    ).first()
    if version is None:
        raise NotFound("Version")
    return version


def spare_versions(flow_id: UUID) -> sa.Select[UUID]:
    """The versions of the flow that nothing refers to: not active, not the latest, and used by no execution."""
    version = FlowVersionRecord
    ran = sa.select(ExecutionRecord.id).where(ExecutionRecord.flow_version_id == version.id).limit(1)
    return (
        sa.select(version.id)
        .join(FlowRecord, FlowRecord.id == version.flow_id)
        .where(
            version.flow_id == flow_id,
            version.id.is_distinct_from(FlowRecord.active_version_id),
            version.number.is_distinct_from(FlowRecord.latest_version),
            ran.scalar_subquery().is_(None),
        )
    )


def _marks() -> tuple[sa.ColumnElement[bool], ...]:
    """Whether a version is the one that the last start activated, and whether it is the newest."""
    active = sa.func.coalesce(FlowRecord.active_version_id == FlowVersionRecord.id, sa.false())
    latest = sa.func.coalesce(FlowRecord.latest_version == FlowVersionRecord.number, sa.false())
    return active.label("active"), latest.label("latest")
