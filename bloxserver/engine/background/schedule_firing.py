"""Firing schedules: once, however many replicas look, and with no burst after the server was down."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import Forbidden, Unprocessable
from bloxserver.models.database import after_commit
from bloxserver.models.enums import TriggerType
from bloxserver.models.tables import TriggerRecord
from bloxserver.observability import metrics
from bloxserver.queries.triggers import DueSchedule
from bloxserver.services.cron import Cron
from bloxserver.services.executions import accept_for_trigger, input_of_json

log = structlog.stdlib.get_logger("bloxserver.schedules")

ON_TIME_WINDOW = timedelta(minutes=2)
"""A firing up to this late is on time: it waited for a sweep, not for a server that was down."""
CATCH_UP_WINDOW = timedelta(hours=1)
"""How old a missed firing may be to be made up for, unless `catch_up` says otherwise."""


async def fire_schedule(session: AsyncSession, due: DueSchedule, moment: datetime) -> bool:
    """Give the schedule its next time and, where it is due, accept an execution; whether one was accepted.

    Both happen in this transaction, which only one of those that look at once can win.
    """
    try:
        cron = Cron(due.trigger.config)
    except Unprocessable:
        log.warning("schedule cannot fire", trigger_id=str(due.trigger.trigger_id))
        await disable(session, due)
        _count(session, "invalid")
        return False
    fires = due.next_fire_at is not None and _is_to_be_made_up(due, cron, moment)
    if not await _move(session, due, cron.next_after(moment), **({"last_fired_at": moment} if fires else {})):
        return False
    if not fires:
        if due.next_fire_at is not None:
            _count(session, "missed")
        return False
    try:
        await accept_for_trigger(
            session, due.trigger, TriggerType.SCHEDULE, input_of_json(due.trigger.config.get("payload"))
        )
    except Forbidden as refusal:
        log.warning("schedule refused", trigger_id=str(due.trigger.trigger_id), code=refusal.code)
        _count(session, "refused")
        return False
    _count(session, "fired")
    if due.next_fire_at is not None:
        lateness = (moment - due.next_fire_at).total_seconds()
        after_commit(session, partial(metrics.SCHEDULE_LATENESS_SECONDS.observe, lateness))
    return True


def _count(session: AsyncSession, outcome: str) -> None:
    after_commit(session, metrics.SCHEDULE_FIRINGS.labels(outcome).inc)


async def disable(session: AsyncSession, due: DueSchedule) -> None:
    """Disable a schedule that cannot be fired."""
    await _move(session, due, None, enabled=False)


def _is_to_be_made_up(due: DueSchedule, cron: Cron, moment: datetime) -> bool:
    """Whether a schedule that is due fires now: on time it does, late only as its `catch_up` says."""
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


async def _move(session: AsyncSession, due: DueSchedule, to: datetime | None, **values: object) -> bool:
    """Write the next time unless another has done so since `due` was read."""
    moved = await session.execute(
        sa.update(TriggerRecord)
        .where(
            TriggerRecord.id == due.trigger.trigger_id,
            TriggerRecord.next_fire_at.is_not_distinct_from(due.next_fire_at),
            TriggerRecord.enabled.is_(True),
        )
        .values(next_fire_at=to, **values)
        .returning(TriggerRecord.id)
    )
    return moved.first() is not None


async def disarm_schedules(session: AsyncSession, flow_id: UUID) -> None:
    """Take the times from a stopped flow's schedules: what they would have done meanwhile is not made up for."""
    await session.execute(
        sa.update(TriggerRecord)
        .where(TriggerRecord.flow_id == flow_id, TriggerRecord.type == TriggerType.SCHEDULE)
        .values(next_fire_at=None)
    )
