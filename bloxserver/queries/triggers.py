from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.enums import BillingStatus, FlowStatus, Tier, TriggerType
from bloxserver.models.tables import FlowRecord, FlowVersionRecord, TriggerRecord, UserRecord
from bloxserver.models.types import UtcDateTime
from bloxserver.plans import Plan, get_plan
from bloxserver.queries.flows import require_flow
from bloxserver.queries.requesters import owned_by
from bloxserver.queries.usage import stored_bytes_of
from bloxserver.raw_json import plain_object

MAX_TOKEN_LENGTH = 255
INVALID_CONFIG = {"signature": "The config is not an object"}
"""Stands for a config that another program stored and that is not an object. No sender can meet this signature."""


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
    billing_status: BillingStatus | None

    @property
    def plan(self) -> Plan:
        """The owner's plan."""
        return get_plan(self.tier or Tier.FREE, self.limits, self.billing_status)


_triggers, _flows, _users = TriggerRecord.__table__, FlowRecord.__table__, UserRecord.__table__
_TRIGGER_ROWS = (
    sa.select(
        _triggers.c.id,
        _triggers.c.name,
        _triggers.c.config,
        _triggers.c.enabled,
        _flows.c.id,
        _flows.c.name,
        _flows.c.status,
        _flows.c.user_id,
        _users.c.tier,
        _users.c.limits,
        stored_bytes_of(_flows.c.user_id),
        _users.c.current_period_start,
        _users.c.current_period_end,
        _users.c.billing_status,
    )
    .select_from(_triggers.join(_flows, _flows.c.id == _triggers.c.flow_id))
    .outerjoin(_users, _users.c.id == _flows.c.user_id)
    .where(_flows.c.deleted_at.is_(None), _triggers.c.deleted_at.is_(None))
)
"""Triggers of all users, with their flows and owners, in the order of `TriggerRow`."""
_HAS_TOKEN = sa.and_(
    sa.or_(
        _triggers.c.webhook_token == sa.bindparam("token", type_=sa.String),
        sa.and_(
            _triggers.c.previous_token == sa.bindparam("token", type_=sa.String),
            _triggers.c.previous_token_expires_at > sa.bindparam("moment", type_=UtcDateTime),
        ),
    ),
    _triggers.c.type == TriggerType.WEBHOOK,
)
"""Whether a token is that of a webhook, or its previous one within the grace period."""
_ONE_WEBHOOK = _TRIGGER_ROWS.where(_HAS_TOKEN)
_WEBHOOKS = (
    _TRIGGER_ROWS.where(
        _triggers.c.webhook_token.in_(sa.bindparam("tokens", expanding=True, type_=sa.String)),
        _triggers.c.type == TriggerType.WEBHOOK,
    )
    .add_columns(_flows.c.active_version_id, _flows.c.active_version, _flows.c.vars_id, _triggers.c.webhook_token)
    # The lock lasts until the transaction ends. A flow is `stopped` only after the executions that were accepted before
    # are visible: `reconcile_flow` waits for these locks. They do not conflict with a change of the flow's status.
    .with_for_update(read=True, key_share=True, skip_locked=True, of=_flows)
)


def _trigger_row(row: Sequence[Any]) -> TriggerRow:
    trigger = TriggerRow(*row)
    return trigger._replace(config=plain_object(trigger.config))


def _webhook_row(row: Sequence[Any]) -> TriggerRow:
    webhook = _trigger_row(row)
    return webhook if isinstance(webhook.config, dict) else webhook._replace(config=INVALID_CONFIG)


async def read_webhook(session: AsyncSession, token: str) -> TriggerRow:
    """The webhook with this token, with its flow and its owner, in one statement; raises `NotFound`."""
    if not _can_be_a_token(token):
        raise NotFound("Webhook")
    row = (await session.execute(_ONE_WEBHOOK, {"token": token, "moment": now()})).first()
    if row is None:
        raise NotFound("Webhook")
    return _webhook_row(row)


async def find_webhook_id(session: AsyncSession, token: str) -> UUID | None:
    """The id of the webhook with this token."""
    if not _can_be_a_token(token):
        return None
    wanted = sa.select(_triggers.c.id).where(_HAS_TOKEN, _triggers.c.deleted_at.is_(None))
    found: UUID | None = await session.scalar(wanted, {"token": token, "moment": now()})
    return found


class LockedWebhook(NamedTuple):
    """A webhook whose flow is locked, and the version that the flow runs."""

    trigger: TriggerRow
    version_id: UUID | None
    version: int | None
    vars_id: UUID | None
    """The variables of the flow."""


async def read_and_lock_webhooks(session: AsyncSession, tokens: Collection[str]) -> dict[str, LockedWebhook]:
    """The webhooks with these tokens, in one statement.

    Leaves out those whose flow another transaction has locked, and those with previous tokens.
    """
    wanted = [token for token in tokens if _can_be_a_token(token)]
    if not wanted:
        return {}
    # Their number is a power of two, so that there are few different statements to prepare.
    wanted += wanted[-1:] * ((1 << (len(wanted) - 1).bit_length()) - len(wanted))
    rows = await session.execute(_WEBHOOKS, {"tokens": wanted})
    return {row[-1]: LockedWebhook(_webhook_row(row[:-4]), *row[-4:-1]) for row in rows}


def _can_be_a_token(text: str) -> bool:
    return len(text) <= MAX_TOKEN_LENGTH and text.isprintable()


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
    return _TRIGGER_ROWS.add_columns(TriggerRecord.next_fire_at).where(*_live_schedules(), due, retried)


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
