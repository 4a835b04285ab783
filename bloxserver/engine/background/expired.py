"""Reads the executions and versions that may be deleted, flow by flow, with the existing indexes.

Conditions on other rows use values, not EXISTS, for which PostgreSQL may scan a whole table.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStepRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVersionRecord,
)
from bloxserver.models.types import UtcDateTime, size_of
from bloxserver.queries import versions as queries

PLACE = (ExecutionRecord.started_at, ExecutionRecord.id)
DELIVERED = timedelta(minutes=1)
"""Longer than any request takes."""
ENDED = ExecutionRecord.status != ExecutionStatus.RUNNING


@dataclass(frozen=True)
class Limits:
    """The executions and versions that are kept; None keeps all."""

    moment: datetime
    """Now, by the database's clock."""
    since: datetime | None
    """Executions that started or ended later are kept."""
    per_flow: int | None
    """The number of ended executions that are kept of each flow, the newest first as in lists."""
    versions: int | None
    """The number of versions that are kept of each flow, the newest first."""


class Position(NamedTuple):
    """A place among the executions of a flow, in the order of their start."""

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


class FlowExcess(NamedTuple):
    """A flow, and whether it has more executions or versions than are kept."""

    flow_id: UUID
    has_old: bool
    newest_surplus: UUID | None
    """The newest execution beyond the number that is kept."""
    newest_surplus_version: int | None
    """The newest version beyond the number that is kept."""

    @property
    def has_excess(self) -> bool:
        return self.has_old or self.newest_surplus is not None or self.newest_surplus_version is not None


async def read_excess(session: AsyncSession, limits: Limits, after: UUID | None, limit: int) -> list[FlowExcess]:
    """The next flows of all users, in the order of their ids."""
    ended = sa.select(ExecutionRecord.id).where(ExecutionRecord.flow_id == FlowRecord.id, ENDED).correlate(FlowRecord)
    old, surplus = ended.order_by(*PLACE), ended.order_by(*(column.desc() for column in PLACE))
    old = old.where(_is_before(limits.since)) if limits.since else old.where(sa.false())
    surplus = surplus.offset(limits.per_flow) if limits.per_flow is not None else surplus.where(sa.false())
    number = FlowVersionRecord.number
    version = sa.select(number).where(FlowVersionRecord.flow_id == FlowRecord.id).correlate(FlowRecord)
    version = version.order_by(number.desc())
    version = version.offset(limits.versions) if limits.versions is not None else version.where(sa.false())
    flows = sa.select(
        FlowRecord.id,
        old.limit(1).scalar_subquery().is_not(None),
        surplus.limit(1).scalar_subquery(),
        version.limit(1).scalar_subquery(),
    ).where(FlowRecord.deleted_at.is_(None))
    if after is not None:
        flows = flows.where(FlowRecord.id > after)
    rows = await session.execute(flows.order_by(FlowRecord.id).limit(limit))
    return [FlowExcess(*row) for row in rows]


async def read_expired(
    session: AsyncSession, flow: FlowExcess, limits: Limits, after: Position | None, limit: int
) -> list[Expired]:
    """Executions of the flow that may be deleted, the oldest first.

    Executions with a running caller or a pending failure notification are kept.
    """
    surplus = await _position(session, flow.newest_surplus)
    wanted = _expired(flow.flow_id, limits, surplus)
    if wanted is None:
        return []
    if after is not None:
        wanted = wanted.where(sa.tuple_(*PLACE) > _value(after))
    rows = await session.execute(wanted.order_by(*PLACE).limit(limit))
    return [Expired(Position(row.started_at, row.id), row.size) for row in rows]


async def read_ended(session: AsyncSession, flow_id: UUID, after: Position | None, limit: int) -> list[Expired]:
    """All executions of the flow that have ended, the oldest first."""
    wanted = sa.select(*PLACE, size_of(ExecutionRecord.input_payload, ExecutionRecord.output_payload))
    wanted = wanted.where(ExecutionRecord.flow_id == flow_id, ENDED)
    if after is not None:
        wanted = wanted.where(sa.tuple_(*PLACE) > _value(after))
    rows = await session.execute(wanted.order_by(*PLACE).limit(limit))
    return [Expired(Position(row.started_at, row.id), row.size) for row in rows]


async def _position(session: AsyncSession, execution_id: UUID | None) -> Position | None:
    if execution_id is None:
        return None
    row = (await session.execute(sa.select(*PLACE).where(ExecutionRecord.id == execution_id))).first()
    return row and Position(*row)


def _expired(flow_id: UUID, limits: Limits, surplus: Position | None) -> sa.Select[datetime, UUID, int] | None:
    reasons = []
    if limits.since is not None:
        reasons.append(_is_before(limits.since))
    if surplus is not None:
        reasons.append(sa.tuple_(*PLACE) <= _value(surplus))
    if not reasons:
        return None
    newest = max(moment for moment in (limits.since, surplus and surplus.started_at) if moment is not None)
    parent = aliased(ExecutionRecord)
    caller = sa.select(parent.status).where(parent.id == ExecutionRecord.parent_id).scalar_subquery()
    untold = sa.select(sa.func.min(FailureNotificationRecord.due_at)).where(
        FailureNotificationRecord.execution_id == ExecutionRecord.id
    )
    return sa.select(*PLACE, size_of(ExecutionRecord.input_payload, ExecutionRecord.output_payload)).where(
        ExecutionRecord.flow_id == flow_id,
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


def _value(position: Position) -> sa.ColumnElement[Any]:
    return sa.tuple_(sa.literal(position.started_at, UtcDateTime()), sa.literal(position.id, sa.Uuid()))


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


def spare_versions(flow: FlowExcess, limits: Limits) -> sa.Select[UUID]:
    """Versions of the flow that may be deleted, the oldest first. None if the flow was changed recently."""
    return (
        queries.spare_versions(flow.flow_id)
        .where(
            FlowVersionRecord.number <= flow.newest_surplus_version, FlowRecord.updated_at < limits.moment - DELIVERED
        )
        .order_by(FlowVersionRecord.number)
    )


async def count_spare_versions(session: AsyncSession, flow: FlowExcess, limits: Limits) -> int:
    spare = spare_versions(flow, limits).order_by(None).subquery()
    return await session.scalar(sa.select(sa.func.count()).select_from(spare)) or 0
