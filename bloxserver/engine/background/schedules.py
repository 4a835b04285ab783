"""Looks after schedules: gives new ones their time, and fires those that are due."""

from __future__ import annotations

from functools import partial

import structlog

from bloxserver.clock import now
from bloxserver.engine.background.schedule_firing import disable, fire_schedule
from bloxserver.engine.retry import process_each
from bloxserver.models.database import Database
from bloxserver.models.transient_errors import is_transient
from bloxserver.observability import tracing
from bloxserver.queries.triggers import DueSchedule, read_due_schedules

log = structlog.stdlib.get_logger("bloxserver.schedules")

BATCH = 100


async def fire_due_schedules(database: Database) -> None:
    """Fire what is due, each in a transaction of its own."""
    while True:
        async with database.transaction(read_only=True) as session:
            due = await read_due_schedules(session, now(), BATCH)
        done = await process_each(due, partial(_fire, database))
        if len(due) < BATCH or not done:
            return


async def _fire(database: Database, schedule: DueSchedule) -> bool:
    """One that cannot be fired is switched off, so that it keeps no other from firing."""
    try:
        about = {"bloxserver.flow.id": str(schedule.trigger.flow_id)}
        with tracing.continued("schedule", None, about):
            async with database.transaction() as session:
                await fire_schedule(session, schedule, now())
    except Exception as error:
        if is_transient(error):
            raise
        log.error("schedule failed", trigger_id=str(schedule.trigger.trigger_id), exc_info=error)
        async with database.transaction() as session:
            await disable(session, schedule)
    return True
