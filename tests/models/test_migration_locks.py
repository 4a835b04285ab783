"""A migration locks tables that other transactions use, without letting any of these fail."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.migration_locks import lock_tables
from tests.lock_waits import wait_for_lock_wait

LOCKS = ("LOCK TABLE flows IN SHARE ROW EXCLUSIVE MODE", "LOCK TABLE executions IN ACCESS EXCLUSIVE MODE")


async def test_locks_are_taken_when_other_transactions_end(live_database: Database, backend: str) -> None:
    """The other transaction has one table and then needs the other: a deadlock, if the first lock were kept."""
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")

    async def lock() -> str:
        async with live_database.engine.begin() as connection:
            await connection.run_sync(lock_tables, *LOCKS)
            timeout = await connection.execute(sa.text("SHOW lock_timeout"))
            return str(timeout.scalar_one())

    async with live_database.transaction() as session:
        await session.execute(sa.text("UPDATE executions SET worker_id = 'w'"))
        locking = asyncio.create_task(lock())
        await wait_for_lock_wait(live_database, locking)
        await session.execute(sa.text("UPDATE flows SET name = 'f'"))
        default = await session.scalar(sa.text("SHOW lock_timeout"))
    assert await locking == default


async def test_sqlite_needs_no_locks(live_database: Database, backend: str) -> None:
    if backend == "postgresql":
        pytest.skip("PostgreSQL has many writers")
    async with live_database.engine.begin() as connection:
        await connection.run_sync(lock_tables, *LOCKS)
