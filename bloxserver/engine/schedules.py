"""Looks after schedules: gives new ones their time, and fires those that are due."""

from __future__ import annotations

from bloxserver.api.models.database import Database
from bloxserver.api.models.types import now
from bloxserver.queries.triggers import read_due_schedules
from bloxserver.services.schedules import fire_schedule

BATCH = 100


async def fire_due_schedules(database: Database) -> None:
    """Each in a transaction of its own: one that fails keeps no other from firing."""
    while True:
        async with database.transaction(read_only=True) as session:
            due = await read_due_schedules(session, now(), BATCH)
        for schedule in due:
            async with database.transaction() as session:
                await fire_schedule(session, schedule, now())
        if len(due) < BATCH:
            return
