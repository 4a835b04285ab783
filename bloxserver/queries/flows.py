from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from bloxserver.errors import NotFound
from bloxserver.ids import read_id
from bloxserver.models.enums import FlowStatus
from bloxserver.models.single_statements import Statements
from bloxserver.models.tables import ExecutionRecord, ExecutionTotalsRecord, FlowRecord
from bloxserver.queries.paging import Page, PageRequest
from bloxserver.queries.requesters import (
    REQUESTER,
    REQUESTER_AND_FLOW,
    REQUESTER_COLUMNS,
    USER_ID,
    Requester,
    owned_by,
    read_for,
)
from bloxserver.storable import storable_text


def flow_exists() -> sa.ColumnElement[bool]:
    """The condition that the flow of an execution was not deleted, for statements about executions."""
    flow = aliased(FlowRecord)
    return ExecutionRecord.flow_id.not_in(sa.select(flow.id).where(flow.deleted_at.is_not(None)))


async def read_flow(session: AsyncSession, user_id: UUID, flow_id: UUID, *, lock: bool = False) -> FlowRecord:
    """The user's flow; `lock` locks its row until the transaction ends. Raises `NotFound`."""
    wanted = sa.select(FlowRecord).where(owned_by(user_id), FlowRecord.id == flow_id)
    # Refresh a row that the session has loaded: its enums may have been set as plain strings.
    wanted = wanted.execution_options(populate_existing=True)
    flow = await session.scalar(wanted.with_for_update(key_share=True) if lock else wanted)
    if flow is None:
        raise NotFound("Flow")
    return flow


async def require_flow(session: AsyncSession, user_id: UUID, flow_id: UUID, *, lock: bool = False) -> str:
    """The name of the user's flow. Raises `NotFound`."""
    wanted = sa.select(FlowRecord.name).where(owned_by(user_id), FlowRecord.id == flow_id)
    name = await session.scalar(wanted.with_for_update() if lock else wanted)
    if name is None:
        raise NotFound("Flow")
    return name


_flows = FlowRecord.__table__
ONE = sa.select(*REQUESTER_COLUMNS, *_flows.c).select_from(REQUESTER_AND_FLOW)


@cache
def _list(*, is_restricted: bool) -> sa.Executable:
    """The statement of a page of flows: all, or those of the parameter `flow_ids`."""
    wanted = owned_by(USER_ID, _flows.c)
    if is_restricted:
        wanted = sa.and_(wanted, _flows.c.id.in_(sa.bindparam("flow_ids", expanding=True)))
    summaries = (
        sa.select(_flows.c.id, _flows.c.name, _flows.c.description, _flows.c.status, _flows.c.updated_at)
        .where(wanted)
        .order_by(_flows.c.updated_at.desc(), _flows.c.id.desc())
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .offset(sa.bindparam("offset", type_=sa.BigInteger))
        .subquery("page")
    )
    total = sa.select(sa.func.count()).select_from(_flows).where(wanted).scalar_subquery()
    return (
        sa.select(*REQUESTER_COLUMNS, total.label("total"), *summaries.c)
        .select_from(REQUESTER.outerjoin(summaries, sa.true()))
        .order_by(summaries.c.updated_at.desc(), summaries.c.id.desc())
    )


async def read_flows(
    session: Statements, requester: Requester, page: PageRequest, flow_ids: Collection[UUID] | None = None
) -> Page:
    """A page of the requester's flows, the most recently changed first: all, or those with these ids."""
    parameters: dict[str, Any] = {"limit": page.page_size, "offset": page.offset}
    if flow_ids is not None:
        parameters["flow_ids"] = list(flow_ids)
    rows = await read_for(requester, session, _list(is_restricted=flow_ids is not None), parameters)
    return Page([row for row in rows if row.id is not None], rows[0].total, page.page, page.page_size)


async def read_flow_of(session: Statements, requester: Requester, flow_id: UUID) -> sa.Row[Any]:
    """The columns of the requester's flow. Raises `NotFound`."""
    row = (await read_for(requester, session, ONE, {"flow_id": flow_id}))[0]
    if row.id is None:
        raise NotFound("Flow")
    return row


async def find_flows(session: AsyncSession, user_id: UUID, references: Collection[str]) -> dict[str, list[UUID]]:
    """The ids of the user's flows that each reference, an id or a name, stands for. Unknown references are left out."""
    ids = {reference: flow_id for reference in references if (flow_id := read_id(reference)) is not None}
    names = [storable_text(reference) for reference in references if reference not in ids]
    rows = await session.execute(
        sa.select(FlowRecord.id, FlowRecord.name).where(
            owned_by(user_id), sa.or_(FlowRecord.id.in_(ids.values()), FlowRecord.name.in_(names))
        )
    )
    by_id: set[UUID] = set()
    by_name: dict[str, list[UUID]] = {}
    for flow_id, name in rows:
        by_id.add(flow_id)
        by_name.setdefault(name, []).append(flow_id)
    called = {reference: [flow_id] for reference, flow_id in ids.items() if flow_id in by_id}
    named = {reference: by_name.get(storable_text(reference), []) for reference in references if reference not in ids}
    return called | {reference: found for reference, found in named.items() if found}


async def read_flow_ids(session: AsyncSession, user_id: UUID) -> list[UUID]:
    """The ids of all flows of the user."""
    return list(await session.scalars(sa.select(FlowRecord.id).where(owned_by(user_id)).order_by(FlowRecord.id)))


async def count_flows(session: AsyncSession, user_id: UUID) -> int:
    return await session.scalar(sa.select(sa.func.count()).select_from(FlowRecord).where(owned_by(user_id))) or 0


async def read_flows_to_reconcile(session: AsyncSession, limit: int, grace_over: datetime) -> list[UUID]:
    """Flows of all users that the engine can start or stop now, the longest waiting first.

    A stopping flow waits for its executions, unless its stop was requested before `grace_over`.
    """
    starting = FlowRecord.status == FlowStatus.STARTING
    stopping = FlowRecord.status == FlowStatus.STOPPING
    asked = FlowRecord.stop_requested_at
    over = sa.or_(asked.is_(None), asked <= grace_over, ~has_running_executions())
    flows = await session.scalars(
        sa.select(FlowRecord.id)
        .where(sa.or_(starting, sa.and_(stopping, over)), FlowRecord.deleted_at.is_(None))
        .order_by(FlowRecord.updated_at)
        .limit(limit)
    )
    return list(flows)


async def has_flows_to_reconcile(session: AsyncSession) -> bool:
    """Whether any flow is starting or stopping."""
    unsettled = sa.or_(FlowRecord.status == FlowStatus.STARTING, FlowRecord.status == FlowStatus.STOPPING)
    unsettled_flow = sa.select(FlowRecord.id).where(unsettled, FlowRecord.deleted_at.is_(None)).limit(1)
    return await session.scalar(unsettled_flow) is not None


def has_running_executions() -> sa.ColumnElement[bool]:
    """Whether a flow has executions that have not ended, for statements about flows."""
    running = (
        sa.select(sa.func.sum(ExecutionTotalsRecord.running))
        .where(ExecutionTotalsRecord.flow_id == FlowRecord.id)
        .correlate(FlowRecord)
    )
    return sa.func.coalesce(running.scalar_subquery(), 0) > 0


def modes_of(flow_id: UUID) -> sa.Select[str]:
    """The modes of a flow's executions. The indexes of executions start with the flow and the mode."""
    return sa.select(ExecutionTotalsRecord.mode).where(ExecutionTotalsRecord.flow_id == flow_id)
