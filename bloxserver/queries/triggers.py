from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound
from bloxserver.models.enums import FlowStatus, Tier, TriggerType
from bloxserver.models.tables import FlowRecord, FlowVersionRecord, TriggerRecord, UserRecord
from bloxserver.plans import Plan, get_plan
from bloxserver.queries.flows import owned_by, require_flow
from bloxserver.queries.usage import stored_bytes_of
from bloxserver.raw_json import plain_object

MAX_TOKEN_LENGTH = 255


class TriggerCursor(NamedTuple):
    """A position in the list of a flow's triggers: that of the last trigger of a page."""

    created_at: datetime
    id: UUID


class TriggerPage(NamedTuple):
    """Triggers of a flow, and the position after which the next page begins; None after the last page."""

    triggers: Sequence[TriggerRecord]
    next: TriggerCursor | None


async def read_triggers(
    session: AsyncSession, user_id: UUID, flow_id: UUID, limit: int | None = None, after: TriggerCursor | None = None
) -> TriggerPage:
    """The triggers of the user's flow, the oldest first: all, or at most `limit`. Raises `NotFound` for the flow."""
    await require_flow(session, user_id, flow_id)
    created_at = TriggerRecord.created_at
    wanted = (
        sa.select(TriggerRecord)
        .where(TriggerRecord.flow_id == flow_id, TriggerRecord.deleted_at.is_(None))
        .order_by(created_at, TriggerRecord.id)
    )
    if after is not None:
        is_later = sa.or_(created_at > after.created_at, TriggerRecord.id > after.id)
        wanted = wanted.where(created_at >= after.created_at, is_later)
    if limit is None:
        return TriggerPage((await session.scalars(wanted)).all(), None)
    found = (await session.scalars(wanted.limit(limit + 1))).all()
    if len(found) <= limit:
        return TriggerPage(found, None)
    last = found[limit - 1]
    return TriggerPage(found[:limit], TriggerCursor(last.created_at, last.id))


async def count_triggers(session: AsyncSession, flow_id: UUID) -> int:
    """The number of triggers of a flow."""
    wanted = sa.select(sa.func.count()).where(TriggerRecord.flow_id == flow_id, TriggerRecord.deleted_at.is_(None))
    return await session.scalar(wanted) or 0


async def read_trigger(
    session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID, *, lock: bool = False
) -> TriggerRecord:
    """One trigger of the user's flow, locked until the transaction ends if `lock` is set. Raises `NotFound`."""
    wanted = (
        sa.select(TriggerRecord)
        .join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
        .where(
            owned_by(user_id),
            FlowRecord.id == flow_id,
            TriggerRecord.id == trigger_id,
            TriggerRecord.deleted_at.is_(None),
        )
        .execution_options(populate_existing=True)
    )
    trigger = await session.scalar(wanted.with_for_update(key_share=True, of=TriggerRecord) if lock else wanted)
    if trigger is None:
        raise NotFound("Trigger")
    return trigger


class TriggerRow(NamedTuple):
    """A trigger with what accepting a run for it requires."""

    trigger_id: UUID
    trigger_name: str
    config: dict[str, Any]
    enabled: bool
    flow_id: UUID
    flow_name: str
    flow_status: FlowStatus
    user_id: UUID
    tier: Tier | None
    limits: dict[str, Any] | None
    stored_bytes: int
    """The bytes that the owner stores."""
    current_period_start: datetime | None
    current_period_end: datetime | None

    @property
    def plan(self) -> Plan:
        """The owner's plan."""
        return get_plan(self.tier or Tier.FREE, self.limits)


def _trigger_rows() -> sa.Select[Any]:
    """Triggers of all users, with their flows and owners, in the order of `TriggerRow`."""
    return (
        sa.select(
            TriggerRecord.id,
            TriggerRecord.name,
            TriggerRecord.config,
            TriggerRecord.enabled,
            FlowRecord.id,
            FlowRecord.name,
            FlowRecord.status,
            FlowRecord.user_id,
            UserRecord.tier,
            UserRecord.limits,
            stored_bytes_of(FlowRecord.user_id),
            UserRecord.current_period_start,
            UserRecord.current_period_end,
        )
        .join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
        .outerjoin(UserRecord, UserRecord.id == FlowRecord.user_id)
        .where(FlowRecord.deleted_at.is_(None), TriggerRecord.deleted_at.is_(None))
    )


def _trigger_row(row: Sequence[Any]) -> TriggerRow:
    trigger = TriggerRow(*row)
    return trigger._replace(config=plain_object(trigger.config))


async def read_webhook(session: AsyncSession, token: str) -> TriggerRow:
    """The webhook with this token, with its flow and its owner, in one statement; raises `NotFound`."""
    if len(token) > MAX_TOKEN_LENGTH or not token.isprintable():
        raise NotFound("Webhook")
    wanted = _trigger_rows().where(TriggerRecord.webhook_token == token, TriggerRecord.type == TriggerType.WEBHOOK)
    row = (await session.execute(wanted)).first()
    if row is None:
        raise NotFound("Webhook")
    return _trigger_row(row)


class DueSchedule(NamedTuple):
    """A schedule that is due, or that has no firing time yet."""

    next_fire_at: datetime | None
    trigger: TriggerRow


def _live_schedules() -> tuple[sa.ColumnElement[bool], ...]:
    return (
        TriggerRecord.type == TriggerType.SCHEDULE,
        TriggerRecord.enabled.is_(True),
        TriggerRecord.deleted_at.is_(None),
        FlowRecord.status == FlowStatus.RUNNING,
        FlowRecord.deleted_at.is_(None),
    )


def _due_schedules(moment: datetime) -> sa.Select[Any]:
    """Enabled schedules of running flows that are due or have no firing time yet, and whose backoff has passed."""
    due = sa.or_(TriggerRecord.next_fire_at.is_(None), TriggerRecord.next_fire_at <= moment)
    retried = sa.or_(TriggerRecord.retry_at.is_(None), TriggerRecord.retry_at <= moment)
    return _trigger_rows().add_columns(TriggerRecord.next_fire_at).where(*_live_schedules(), due, retried)


async def read_due_schedules(session: AsyncSession, moment: datetime, limit: int) -> list[DueSchedule]:
    """Schedules to be armed or fired at `moment`, the one that is due the longest first."""
    rows = await session.execute(_due_schedules(moment).order_by(TriggerRecord.next_fire_at).limit(limit))
    return [DueSchedule(row[-1], _trigger_row(row[:-1])) for row in rows]


async def lock_due_schedule(session: AsyncSession, trigger_id: UUID, moment: datetime) -> DueSchedule | None:
    """The schedule as it is now, locked until the transaction ends.

    None if it is no longer due, or if another transaction has it locked.
    """
    wanted = _due_schedules(moment).where(TriggerRecord.id == trigger_id)
    rows = await session.execute(wanted.with_for_update(key_share=True, skip_locked=True, of=TriggerRecord))
    return next((DueSchedule(row[-1], _trigger_row(row[:-1])) for row in rows), None)


async def read_running_definition(session: AsyncSession, flow_id: UUID) -> str | None:
    """The definition that a flow runs; None if the flow was deleted."""
    return await session.scalar(
        sa.select(sa.func.coalesce(FlowVersionRecord.organism_yaml, FlowRecord.organism_yaml))
        .select_from(FlowRecord)
        .outerjoin(FlowVersionRecord, FlowVersionRecord.id == FlowRecord.active_version_id)
        .where(FlowRecord.id == flow_id, FlowRecord.deleted_at.is_(None))
    )


async def read_next_fire(session: AsyncSession, moment: datetime) -> datetime | None:
    """When the next schedule of a running flow is due after `moment`."""
    return await session.scalar(
        sa.select(sa.func.min(TriggerRecord.next_fire_at))
        .join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
        .where(*_live_schedules(), TriggerRecord.next_fire_at > moment)
    )
