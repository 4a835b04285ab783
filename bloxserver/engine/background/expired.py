"""Reads the executions, versions and audit events that may be deleted, with the existing indexes.

Conditions on other rows use values, not EXISTS, for which PostgreSQL may scan a whole table.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import (
    AuditEventRecord,
    ExecutionRecord,
    ExecutionStepRecord,
    ExecutionTotalsRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVersionRecord,
)
from bloxserver.models.types import UtcDateTime, size_of
from bloxserver.queries import versions as queries

PLACE = (ExecutionRecord.started_at, ExecutionRecord.id)
PLACE_IN_FLOW = (ExecutionRecord.mode, *PLACE)
DELIVERED = timedelta(minutes=1)
"""Longer than any request takes."""
ENDED = ExecutionRecord.status != ExecutionStatus.RUNNING


@dataclass(frozen=True)
class Limits:
    """The executions, versions and audit events that are kept; None keeps all."""

    moment: datetime
    """Now, by the database's clock."""
    since: datetime | None
    """Executions that started or ended later are kept."""
    per_flow: int | None
    """The number of ended executions that are kept of each flow and mode, the newest first as in lists."""
    versions: int | None
    """The number of versions that are kept of each flow, the newest first."""
    audit_since: datetime | None
    """Events that are not older are kept."""


class Position(NamedTuple):
    """A place among the executions of a flow, by mode, in the order of their start."""

    mode: str
    started_at: datetime
    id: UUID


class Expired(NamedTuple):
    """An execution that may be deleted."""

    position: Position
    size: int
    """Bytes that its own payloads take in the database."""


class StepSize(NamedTuple):
    execution_id: UUID
    id: UUID
    size: int
    """Bytes that its payloads take in the database."""


class ExecutionExcess(NamedTuple):
    """A flow and mode of which there are more executions than are kept."""

    flow_id: UUID
    mode: str
    has_old: bool
    newest_surplus: UUID | None
    """The newest execution beyond the number that is kept."""


class VersionExcess(NamedTuple):
    """A flow, and the newest of its versions beyond the number that is kept."""

    flow_id: UUID
    newest_surplus: int


async def read_flow_ids(session: AsyncSession, after: UUID | None, limit: int) -> Sequence[UUID]:
    """The next flows of all users, in the order of their ids."""
    flows = sa.select(FlowRecord.id).where(FlowRecord.deleted_at.is_(None))
    if after is not None:
        flows = flows.where(FlowRecord.id > after)
    return (await session.scalars(flows.order_by(FlowRecord.id).limit(limit))).all()


async def read_execution_excess(
    session: AsyncSession, limits: Limits, flow_ids: Sequence[UUID]
) -> list[ExecutionExcess]:
    """The flows of a page of `read_flow_ids`, and the modes, that have more executions than are kept."""
    totals = ExecutionTotalsRecord
    pairs = sa.select(totals.flow_id, totals.mode).where(totals.flow_id.between(flow_ids[0], flow_ids[-1])).distinct()
    found = []
    for mode in sorted({mode for _, mode in await session.execute(pairs)}):
        ended = sa.select(ExecutionRecord.id).where(
            ExecutionRecord.flow_id == FlowRecord.id, ExecutionRecord.mode == mode, ENDED
        )
        old, surplus = ended.order_by(*PLACE), ended.order_by(*(column.desc() for column in PLACE))
        old = old.where(_is_before(limits.since)) if limits.since else old.where(sa.false())
        surplus = surplus.offset(limits.per_flow) if limits.per_flow is not None else surplus.where(sa.false())
        parts = [part.limit(1).correlate(FlowRecord).scalar_subquery() for part in (old, surplus)]
        rows = await session.execute(_page(flow_ids, parts[0].is_not(None), parts[1]))
        found += [ExecutionExcess(row[0], mode, *row[1:]) for row in rows if row[1] or row[2] is not None]
    return found


async def read_version_excess(session: AsyncSession, limits: Limits, flow_ids: Sequence[UUID]) -> list[VersionExcess]:
    """The flows of a page of `read_flow_ids` that have more versions than are kept."""
    if limits.versions is None:
        return []
    number = FlowVersionRecord.number
    version = sa.select(number).where(FlowVersionRecord.flow_id == FlowRecord.id).order_by(number.desc())
    surplus = version.offset(limits.versions).limit(1).correlate(FlowRecord).scalar_subquery()
    rows = await session.execute(_page(flow_ids, surplus))
    return [VersionExcess(*row) for row in rows if row[1] is not None]


def _page(flow_ids: Sequence[UUID], *columns: sa.ColumnElement[Any]) -> sa.Select[*tuple[Any, ...]]:
    flows = sa.select(FlowRecord.id, *columns).where(FlowRecord.id.between(flow_ids[0], flow_ids[-1]))
    return flows.where(FlowRecord.deleted_at.is_(None)).order_by(FlowRecord.id).limit(len(flow_ids))


async def read_expired(
    session: AsyncSession, excess: ExecutionExcess, limits: Limits, after: Position | None, limit: int
) -> list[Expired]:
    """Executions of the flow and mode that may be deleted, the oldest first.

    Executions with a running caller or a pending failure notification are kept.
    """
    surplus = await _position(session, excess.newest_surplus)
    wanted = _expired(excess, limits, surplus)
    if wanted is None:
        return []
    if after is not None:
        wanted = wanted.where(_is_after(after))
    rows = await session.execute(wanted.order_by(*PLACE).limit(limit))
    return [Expired(Position(row.mode, row.started_at, row.id), row.size) for row in rows]


async def read_ended(session: AsyncSession, flow_id: UUID, after: Position | None, limit: int) -> list[Expired]:
    """All executions of the flow that have ended: by mode, the oldest first."""
    wanted = sa.select(*PLACE_IN_FLOW, size_of(ExecutionRecord.input_payload, ExecutionRecord.output_payload))
    wanted = wanted.where(ExecutionRecord.flow_id == flow_id, ENDED)
    if after is not None:
        wanted = wanted.where(
            sa.tuple_(*PLACE_IN_FLOW) > sa.tuple_(sa.literal(after.mode, sa.String()), *_place(after))
        )
    rows = await session.execute(wanted.order_by(*PLACE_IN_FLOW).limit(limit))
    return [Expired(Position(row.mode, row.started_at, row.id), row.size) for row in rows]


async def _position(session: AsyncSession, execution_id: UUID | None) -> Position | None:
    if execution_id is None:
        return None
    row = (await session.execute(sa.select(*PLACE_IN_FLOW).where(ExecutionRecord.id == execution_id))).first()
    return row and Position(*row)


def _expired(
    excess: ExecutionExcess, limits: Limits, surplus: Position | None
) -> sa.Select[str, datetime, UUID, int] | None:
    reasons = []
    if limits.since is not None:
        reasons.append(_is_before(limits.since))
    if surplus is not None:
        reasons.append(sa.tuple_(*PLACE) <= sa.tuple_(*_place(surplus)))
    if not reasons:
        return None
    newest = max(moment for moment in (limits.since, surplus and surplus.started_at) if moment is not None)
    parent = aliased(ExecutionRecord)
    caller = sa.select(parent.status).where(parent.id == ExecutionRecord.parent_id).scalar_subquery()
    untold = sa.select(sa.func.min(FailureNotificationRecord.due_at)).where(
        FailureNotificationRecord.execution_id == ExecutionRecord.id
    )
    return sa.select(*PLACE_IN_FLOW, size_of(ExecutionRecord.input_payload, ExecutionRecord.output_payload)).where(
        ExecutionRecord.flow_id == excess.flow_id,
        ExecutionRecord.mode == excess.mode,
        ExecutionRecord.started_at <= newest,
        ENDED,
        sa.or_(*reasons),
        caller.is_distinct_from(ExecutionStatus.RUNNING),
        untold.scalar_subquery().is_(None),
    )


def _is_before(moment: datetime) -> sa.ColumnElement[bool]:
    """Whether an execution started and ended before the moment. Rows inserted by hand may have no end time."""
    ended_at = sa.func.coalesce(ExecutionRecord.completed_at, ExecutionRecord.started_at)
    return sa.and_(ExecutionRecord.started_at < moment, ended_at < moment)


def _is_after(position: Position) -> sa.ColumnElement[bool]:
    """Whether an execution is after the position, among those of its mode."""
    return sa.tuple_(*PLACE) > sa.tuple_(*_place(position))


def _place(position: Position) -> tuple[sa.ColumnElement[Any], ...]:
    return sa.literal(position.started_at, UtcDateTime()), sa.literal(position.id, sa.Uuid())


async def read_step_sizes(session: AsyncSession, execution_ids: Collection[UUID], limit: int) -> list[StepSize]:
    """Steps of these executions, execution by execution."""
    step = ExecutionStepRecord
    rows = await session.execute(
        sa.select(step.execution_id, step.id, size_of(step.input_payload, step.output_payload, step.state))
        .where(step.execution_id.in_(execution_ids))
        .order_by(step.execution_id, step.sequence)
        .limit(limit)
    )
    return [StepSize(*row) for row in rows]


async def count_steps(session: AsyncSession, execution_ids: Collection[UUID]) -> int:
    """The number of steps of these executions."""
    count = sa.select(sa.func.count()).select_from(ExecutionStepRecord)
    return await session.scalar(count.where(ExecutionStepRecord.execution_id.in_(execution_ids))) or 0


def spare_versions(flow: VersionExcess, limits: Limits) -> sa.Select[UUID]:
    """Versions of the flow that may be deleted, the oldest first. None if the flow was changed recently."""
    return (
        queries.spare_versions(flow.flow_id)
        .where(FlowVersionRecord.number <= flow.newest_surplus, FlowRecord.updated_at < limits.moment - DELIVERED)
        .order_by(FlowVersionRecord.number)
    )


async def count_spare_versions(session: AsyncSession, flow: VersionExcess, limits: Limits) -> int:
    spare = spare_versions(flow, limits).order_by(None).subquery()
    return await session.scalar(sa.select(sa.func.count()).select_from(spare)) or 0


def expired_events(since: datetime) -> sa.Select[UUID]:
    """Audit events that may be deleted, the oldest first."""
    return (
        sa.select(AuditEventRecord.id)
        .where(AuditEventRecord.created_at < since)
        .order_by(AuditEventRecord.created_at, AuditEventRecord.id)
    )


async def count_expired_events(session: AsyncSession, since: datetime) -> int:
    expired = expired_events(since).order_by(None).subquery()
    return await session.scalar(sa.select(sa.func.count()).select_from(expired)) or 0
