"""Looks after schedules: gives new ones their time, and fires those that are due."""

from __future__ import annotations

from functools import partial

import structlog

from bloxserver import tracing
from bloxserver.api.models.database import Database
from bloxserver.api.models.passing import is_passing
from bloxserver.api.models.types import now
from bloxserver.engine.patience import one_by_one
from bloxserver.queries.triggers import DueSchedule, read_due_schedules
from bloxserver.services.schedules import fire_schedule, switch_off

log = structlog.stdlib.get_logger("bloxserver.schedules")

BATCH = 100


async def fire_due_schedules(database: Database) -> None:
    """Fire what is due, each in a transaction of its own."""
    while True:
        async with database.transaction(read_only=True) as session:
            due = await read_due_schedules(session, now(), BATCH)
        done = await one_by_one(due, partial(_fire, database))
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
        if is_passing(error):
            raise
        log.error("schedule failed", trigger_id=str(schedule.trigger.trigger_id), exc_info=error)
        async with database.transaction() as session:
            await switch_off(session, schedule)
    return True
