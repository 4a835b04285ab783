"""The state of the whole installation, over all users: for `/metrics` and `bloxserver status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.enums import ExecutionStatus, FlowStatus, Tier, TriggerType
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    MeterReportRecord,
    TriggerRecord,
    UserRecord,
    WorkerRecord,
)
from bloxserver.models.types import database_now
from bloxserver.queries.flows import flow_exists

RECENT_WINDOW = timedelta(hours=1)


class TierQueue(NamedTuple):
    """Executions of a tier that have not ended."""

    waiting: int = 0
    """Due and not claimed."""
    running: int = 0
    """Claimed by a worker."""
    suspended: int = 0
    """Not due: suspended until a time, or until a called execution ends."""
    due_since: datetime | None = None
    """When the longest waiting execution was due; None if none waits."""


class LivingWorker(NamedTuple):
    name: str
    version: str | None
    started_at: datetime
    silence: timedelta
    """Time since its last heartbeat."""


class Schedules(NamedTuple):
    """Enabled schedules of running flows."""

    armed: int
    due: int
    due_since: datetime | None


class Overview(NamedTuple):
    """The installation at a moment."""

    moment: datetime
    queue: Mapping[Tier, TierQueue]
    workers: Sequence[LivingWorker]
    taken: Mapping[str | None, int]
    """The number of executions of each worker, including dead ones."""
    schedules: Schedules
    ended: Mapping[ExecutionStatus, int]
    """The number of executions that ended in the last hour, by status."""


async def read_overview(session: AsyncSession, dead_after: timedelta) -> Overview:
    """Read the overview. Counting ended executions reads the whole table, so a scrape does not use this."""
    moment = now()
    return Overview(
        moment,
        queue=await read_queue(session, moment),
        workers=await read_workers(session, dead_after),
        taken=await count_taken(session),
        schedules=await read_schedules(session, moment),
        ended=await count_ended(session, moment - RECENT_WINDOW),
    )


async def read_queue(session: AsyncSession, moment: datetime) -> dict[Tier, TierQueue]:
    """The queue of every tier, in one statement that reads the indexes of waiting and of claimed executions once."""
    by_flow = sa.union_all(_waiting(moment), _running()).subquery()
    of = by_flow.c
    rows = await session.execute(
        sa.select(
            sa.cast(UserRecord.tier, sa.String).label("tier"),
            sa.func.sum(of.waiting),
            sa.func.sum(of.running),
            sa.func.sum(of.suspended),
            sa.func.min(of.due_since),
        )
        .select_from(by_flow)
        .join(FlowRecord, FlowRecord.id == of.flow_id)
        .outerjoin(UserRecord, UserRecord.id == FlowRecord.user_id)
        .where(FlowRecord.deleted_at.is_(None))
        .group_by(UserRecord.tier)
    )
    queues = {tier: TierQueue() for tier in Tier}
    for name, waiting, running, suspended, due_since in rows:
        # An unknown tier has the limits of the free tier.
        tier = Tier(name) if name in set(Tier) else Tier.FREE
        queues[tier] = _added(queues[tier], TierQueue(int(waiting), int(running), int(suspended), due_since))
    return queues


def _waiting(moment: datetime) -> sa.Select[*tuple[Any, ...]]:
    is_due = sa.or_(ExecutionRecord.resume_at.is_(None), ExecutionRecord.resume_at <= moment)
    due_since = sa.func.coalesce(ExecutionRecord.resume_at, ExecutionRecord.started_at)
    return (
        sa.select(
            ExecutionRecord.flow_id,
            sa.func.count().filter(is_due).label("waiting"),
            sa.literal_column("0").label("running"),
            sa.func.count().filter(sa.not_(is_due)).label("suspended"),
            sa.func.min(due_since).filter(is_due).label("due_since"),
        )
        .where(_unended(), ExecutionRecord.lease.is_(None))
        .group_by(ExecutionRecord.flow_id)
    )


def _running() -> sa.Select[*tuple[Any, ...]]:
    return (
        sa.select(
            ExecutionRecord.flow_id,
            sa.literal_column("0"),
            sa.func.count(),
            sa.literal_column("0"),
            sa.cast(sa.null(), ExecutionRecord.started_at.type),
        )
        .where(_unended(), ExecutionRecord.lease.is_not(None))
        .group_by(ExecutionRecord.flow_id)
    )


def _unended() -> sa.ColumnElement[bool]:
    # A literal, not a parameter: PostgreSQL uses a partial index only if the statement contains its condition.
    return ExecutionRecord.status == sa.literal(
        ExecutionStatus.RUNNING, ExecutionRecord.status.type, literal_execute=True
    )


def _added(one: TierQueue, other: TierQueue) -> TierQueue:
    times = [since for since in (one.due_since, other.due_since) if since is not None]
    return TierQueue(
        one.waiting + other.waiting,
        one.running + other.running,
        one.suspended + other.suspended,
        min(times, default=None),
    )


async def read_workers(session: AsyncSession, dead_after: timedelta) -> list[LivingWorker]:
    """The workers with a heartbeat within this time, by the database's clock, the oldest first."""
    rows = await session.execute(
        sa.select(
            WorkerRecord.worker_id,
            WorkerRecord.version,
            WorkerRecord.started_at,
            WorkerRecord.last_heartbeat_at,
            database_now(),
        )
    )
    workers = [
        LivingWorker(name, version, started_at, moment - last_heartbeat_at)
        for name, version, started_at, last_heartbeat_at, moment in rows
    ]
    return sorted((one for one in workers if one.silence <= dead_after), key=lambda one: (one.started_at, one.name))


async def read_unsent_since(session: AsyncSession) -> datetime | None:
    """When the oldest report was made that Stripe has not accepted; None if there is none."""
    oldest: datetime | None = await session.scalar(
        sa.select(sa.func.min(MeterReportRecord.created_at)).where(MeterReportRecord.sent_at.is_(None))
    )
    return oldest


async def count_taken(session: AsyncSession) -> dict[str | None, int]:
    """The number of executions of each worker, including dead ones."""
    rows = await session.execute(
        sa.select(ExecutionRecord.worker_id, sa.func.count().label("number"))
        .where(_unended(), ExecutionRecord.lease.is_not(None))
        .group_by(ExecutionRecord.worker_id)
    )
    return {row.worker_id: row.number for row in rows}


async def read_schedules(session: AsyncSession, moment: datetime) -> Schedules:
    """The schedules of running flows, and those of them that should have fired."""
    due = TriggerRecord.next_fire_at <= moment
    row = await session.execute(
        sa.select(
            sa.func.count(),
            sa.func.count().filter(due),
            sa.func.min(TriggerRecord.next_fire_at).filter(due),
        )
        .join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
        .where(
            TriggerRecord.type == sa.literal(TriggerType.SCHEDULE, TriggerRecord.type.type, literal_execute=True),
            TriggerRecord.enabled.is_(True),
            TriggerRecord.deleted_at.is_(None),
            FlowRecord.status == FlowStatus.RUNNING,
            FlowRecord.deleted_at.is_(None),
        )
    )
    return Schedules(*row.one())


async def count_ended(session: AsyncSession, since: datetime) -> dict[ExecutionStatus, int]:
    """The number of executions that ended since then, by status."""
    rows = await session.execute(
        sa.select(ExecutionRecord.status, sa.func.count().label("number"))
        .where(ExecutionRecord.completed_at >= since, flow_exists())
        .group_by(ExecutionRecord.status)
    )
    return {row.status: row.number for row in rows}
