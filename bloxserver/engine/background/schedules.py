"""Arms schedules with their firing times and fires those that are due."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from traceback import extract_tb

import structlog

from bloxserver.clock import now
from bloxserver.engine.background.schedule_firing import (
    InvalidSchedule,
    disable_schedule,
    fire_schedule,
    postpone_schedule,
)
from bloxserver.engine.retry import process_each
from bloxserver.models import sqlite_connection
from bloxserver.models.database import Database
from bloxserver.models.transient_errors import describe_error, is_transient
from bloxserver.observability import tracing
from bloxserver.organism.load import parse_organism
from bloxserver.organism.model import FailureNotification
from bloxserver.organism.problems import OrganismError
from bloxserver.queries.triggers import DueSchedule, read_due_schedules, read_running_definition
from bloxserver.services.executions import FlowNotRunning

log = structlog.stdlib.get_logger("bloxserver.schedules")

BATCH = 100
MAX_ERROR_CHARACTERS = 255
PACKAGE = Path(__file__).parents[2]


async def fire_due_schedules(database: Database) -> None:
    """Fire due schedules, each in its own transaction."""
    while True:
        async with database.transaction(read_only=True) as session:
            due = await read_due_schedules(session, now(), BATCH)
        done = await process_each(due, partial(_fire, database))
        if len(due) < BATCH or not done:
            return


async def _fire(database: Database, schedule: DueSchedule) -> bool:
    """Fire one schedule. A failure disables it or postpones its next attempt, so that it blocks no other schedule."""
    try:
        try:
            about = {"bloxserver.flow.id": str(schedule.trigger.flow_id)}
            with tracing.continue_trace("schedule", None, about):
                async with database.transaction() as session:
                    await fire_schedule(session, schedule, now())
        except InvalidSchedule as invalid:
            await _disable(database, invalid)
    except FlowNotRunning:
        pass  # the flow was stopped after the schedule was read; the stop clears the schedule's next time
    except Exception as error:
        await _postpone(database, schedule, error)
    return True


def _describe(error: Exception) -> str:
    """The error and its location in this package. Attempts that fail for the same reason have the same text."""
    frames = [
        frame
        for frame in extract_tb(error.__traceback__)
        # Every statement on SQLite is executed in one function of that module.
        if Path(frame.filename).is_relative_to(PACKAGE) and frame.filename != sqlite_connection.__file__
    ]
    return f"{describe_error(error)} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"[:MAX_ERROR_CHARACTERS]


async def _disable(database: Database, invalid: InvalidSchedule) -> None:
    trigger = invalid.trigger
    recipients = await _recipients(database, invalid)
    async with database.transaction() as session:
        disabled = await disable_schedule(session, trigger, invalid.reason, recipients)
    if disabled:
        log.warning(
            "schedule disabled",
            trigger_id=str(trigger.trigger_id),
            flow_id=str(trigger.flow_id),
            reason=invalid.reason,
        )


async def _recipients(database: Database, invalid: InvalidSchedule) -> FailureNotification | None:
    """The recipients that the flow's definition names, if it can be read."""
    async with database.transaction(read_only=True) as session:
        definition = await read_running_definition(session, invalid.trigger.flow_id)
    try:
        return None if definition is None else (await parse_organism(definition, invalid.trigger.flow_id)).on_failure
    except OrganismError:
        return None


async def _postpone(database: Database, schedule: DueSchedule, error: Exception) -> None:
    """Postpone the next attempt. Raises `error` if the database cannot store that either."""
    description = _describe(error)
    try:
        async with database.transaction() as session:
            retry_at = await postpone_schedule(session, schedule.trigger.trigger_id, description, now())
    except Exception:
        raise error from None
    if retry_at is not None:
        log.error(
            "schedule failed",
            trigger_id=str(schedule.trigger.trigger_id),
            flow_id=str(schedule.trigger.flow_id),
            error=description,
            retry_at=retry_at.isoformat(),
            exc_info=None if is_transient(error) else error,
        )
