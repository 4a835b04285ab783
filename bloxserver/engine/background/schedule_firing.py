"""Fires schedules: once, whatever the number of replicas, and at most once after downtime."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from bloxserver.engine.backoff import backoff_seconds
from bloxserver.errors import Forbidden
from bloxserver.models.database import after_commit
from bloxserver.models.enums import TriggerType
from bloxserver.models.tables import TriggerRecord
from bloxserver.observability import metrics
from bloxserver.organism.model import FailureNotification
from bloxserver.queries.triggers import DueSchedule, TriggerRow, lock_due_schedule
from bloxserver.raw_json import plain_object
from bloxserver.services.cron import Cron, schedule_problem
from bloxserver.services.executions import accept_for_trigger, input_of_json
from bloxserver.services.notifications import enqueue_disabled_notification
from bloxserver.services.triggers import NO_FAILURE

log = structlog.stdlib.get_logger("bloxserver.schedules")

ON_TIME_WINDOW = timedelta(minutes=2)
"""A firing with no more than this delay is on time. Sweeps can delay firings even without downtime."""
CATCH_UP_WINDOW = timedelta(hours=1)
"""The maximum age of a missed firing that is caught up, unless `catch_up` is set."""
INITIAL_BACKOFF_SECONDS = 5
MAX_BACKOFF_SECONDS = 600


class InvalidSchedule(Exception):
    """A schedule that cannot fire until its owner changes it. `reason` is shown to the owner."""

    def __init__(self, trigger: TriggerRow, reason: str) -> None:
        super().__init__(reason)
        self.trigger = trigger
        self.reason = reason


async def fire_schedule(session: AsyncSession, due: DueSchedule, moment: datetime) -> bool:
    """Arm the schedule with its next time and, if it is due, accept an execution. Returns whether one was accepted.

    The schedule is read again under a lock. Nothing happens if it was changed, armed or fired since `due` was read, or
    if another transaction has it locked. Raises `InvalidSchedule`.
    """
    current = await lock_due_schedule(session, due.trigger.trigger_id, moment)
    if current is None or current.next_fire_at != due.next_fire_at:
        return False
    due_at, trigger = current
    problem = schedule_problem(trigger.config)
    if problem is not None:
        raise InvalidSchedule(trigger, problem)
    cron = Cron(trigger.config)
    next_fire_at = cron.next_after(moment)
    if next_fire_at is None:
        raise InvalidSchedule(trigger, "config.cron: Does not fire within the next 50 years")
    fires = due_at is not None and _is_to_be_made_up(current, cron, moment)
    fired = {"last_fired_at": moment} if fires else {}
    await _write(session, trigger.trigger_id, next_fire_at=next_fire_at, **fired, **NO_FAILURE)
    if due_at is None:
        return False
    if not fires:
        _count(session, "missed")
        return False
    try:
        facts = {"scheduledFor": due_at.isoformat()}
        given = input_of_json(trigger.config.get("payload"))
        await accept_for_trigger(session, trigger, TriggerType.SCHEDULE, given, facts=facts)
    except Forbidden as refusal:
        log.warning("scheduled run rejected", trigger_id=str(trigger.trigger_id), code=refusal.code)
        _count(session, "refused")
        return False
    _count(session, "fired")
    lateness = (moment - due_at).total_seconds()
    after_commit(session, partial(metrics.SCHEDULE_LATENESS_SECONDS.observe, lateness))
    return True


def _is_to_be_made_up(due: DueSchedule, cron: Cron, moment: datetime) -> bool:
    """Whether a due schedule fires now: always if it is on time, else depending on `catch_up`."""
    missed = cron.last_before(moment)
    if missed is None or (due.next_fire_at is not None and moment - due.next_fire_at <= ON_TIME_WINDOW):
        return True
    match due.trigger.config.get("catch_up"):
        case "none":
            return moment - missed <= ON_TIME_WINDOW
        case "last":
            return True
        case _:
            return moment - missed < CATCH_UP_WINDOW


async def disable_schedule(
    session: AsyncSession, trigger: TriggerRow, reason: str, recipients: FailureNotification | None
) -> bool:
    """Disable an invalid schedule and notify its owner. Returns False if its config was changed since it was read."""
    current = await session.execute(_lock(trigger.trigger_id, TriggerRecord.config))
    if [plain_object(row.config) for row in current] != [trigger.config]:
        return False
    await _write(session, trigger.trigger_id, enabled=False, next_fire_at=None, disabled_reason=reason, **NO_FAILURE)
    if recipients is not None:
        await enqueue_disabled_notification(session, trigger.trigger_id, reason, recipients)
    _count(session, "invalid")
    return True


async def postpone_schedule(session: AsyncSession, trigger_id: UUID, error: str, moment: datetime) -> datetime | None:
    """Postpone the next attempt at a schedule. Returns its time, or None if the previous attempt had the same error.

    The firing time does not change. A later attempt that succeeds is a late firing, to which `catch_up` applies.
    """
    rows = await session.execute(_lock(trigger_id, TriggerRecord.failed_attempts, TriggerRecord.last_error))
    for failed_attempts, last_error in rows:
        retry_at = moment + retry_delay(failed_attempts)
        values = {"failed_attempts": failed_attempts + 1, "last_error": error, "retry_at": retry_at}
        await _write(session, trigger_id, **values)
        return None if last_error == error else retry_at
    return None


def retry_delay(failed_attempts: int) -> timedelta:
    """The delay after a failed attempt that `failed_attempts` failed attempts preceded."""
    seconds = backoff_seconds(failed_attempts + 1, initial=INITIAL_BACKOFF_SECONDS, maximum=MAX_BACKOFF_SECONDS)
    return timedelta(seconds=seconds)


async def disarm_schedules(session: AsyncSession, flow_id: UUID) -> None:
    """Clear the firing times of a stopped flow's schedules: firings during the stop are not caught up."""
    await session.execute(
        sa.update(TriggerRecord)
        .where(TriggerRecord.flow_id == flow_id, TriggerRecord.type == TriggerType.SCHEDULE)
        .values(next_fire_at=None, **NO_FAILURE)
    )


def _lock(trigger_id: UUID, *columns: InstrumentedAttribute[Any]) -> sa.Select[Any]:
    is_live = TriggerRecord.enabled.is_(True), TriggerRecord.deleted_at.is_(None)
    wanted = sa.select(*columns).where(TriggerRecord.id == trigger_id, *is_live)
    return wanted.with_for_update(key_share=True)


async def _write(session: AsyncSession, trigger_id: UUID, **values: object) -> None:
    await session.execute(sa.update(TriggerRecord).where(TriggerRecord.id == trigger_id).values(**values))


def _count(session: AsyncSession, outcome: str) -> None:
    after_commit(session, metrics.SCHEDULE_FIRINGS.labels(outcome).inc)
