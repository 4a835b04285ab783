"""Waits until a transaction on PostgreSQL waits for a lock of another transaction."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa

from bloxserver.models.database import Database

# Other tests use other databases of the same server at the same time. Locks of rows belong to no database.
WAITING = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


async def wait_for_lock_wait(database: Database, task: asyncio.Future[Any], sessions: int = 1) -> None:
    """Return once this number of sessions, among them that of the task, wait for a lock. Fail if the task ends."""
    async with asyncio.timeout(30):
        # In a new transaction each time, because PostgreSQL caches the activity within a transaction.
        while await waiting(database) < sessions:
            assert not task.done(), "it waits for no lock"
            await asyncio.sleep(0.01)


async def waiting(database: Database) -> int:
    async with database.transaction(read_only=True) as session:
        return int((await session.execute(WAITING)).scalar_one())
