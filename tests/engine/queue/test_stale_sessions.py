"""Termination of database sessions of frozen or disconnected processes, which hold locks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa

from bloxserver.engine.queue.recovery import terminate_stale_sessions
from bloxserver.models.database import Database
from bloxserver.settings import Settings

LOCK = "SELECT pg_advisory_xact_lock(1)"
# Other tests use other databases of the same server at the same time.
HELD = sa.text(
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
    " WHERE locktype = 'advisory' AND datname = current_database()"
)


@pytest.fixture
async def frozen(live_database: Database, live_settings: Settings) -> AsyncIterator[psycopg.AsyncConnection]:
    """A session of this application that holds a lock, and has sent half of its next statement."""
    if live_settings.uses_sqlite:
        pytest.skip("SQLite has one process")
    url = sa.make_url(live_settings.database_url).set(drivername="postgresql")
    address = url.render_as_string(hide_password=False)
    connection = await psycopg.AsyncConnection.connect(address, application_name="bloxserver")
    await connection.execute(LOCK)
    connection.pgconn.enter_pipeline_mode()
    connection.pgconn.send_prepare(b"half", b"SELECT 1")
    connection.pgconn.send_flush_request()
    connection.pgconn.flush()
    yield connection
    connection.pgconn.finish()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.02)


async def end_sessions(database: Database, silence: timedelta) -> int:
    async with database.transaction() as session:
        return await terminate_stale_sessions(session, silence)


async def held_locks(database: Database) -> int:
    async with database.transaction(read_only=True) as session:
        return int((await session.execute(HELD)).scalar_one())


async def some_were_ended(database: Database) -> bool:
    return await end_sessions(database, timedelta(milliseconds=100)) > 0


async def none_are_held(database: Database) -> bool:
    return await held_locks(database) == 0


async def test_stale_sessions_are_terminated_and_release_their_locks(
    live_database: Database, frozen: psycopg.AsyncConnection
) -> None:
    assert await held_locks(live_database) == 1
    assert await end_sessions(live_database, timedelta(minutes=1)) == 0, "it may still go on"
    await until(lambda: some_were_ended(live_database))
    await until(lambda: none_are_held(live_database))


@pytest.mark.usefixtures("frozen")
async def test_idle_sessions_and_sessions_of_other_applications_are_kept(
    live_database: Database, live_settings: Settings
) -> None:
    url = sa.make_url(live_settings.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with (
        live_database.engine.connect() as idle,
        await psycopg.AsyncConnection.connect(url, application_name="psql") as other,
    ):
        await idle.execute(sa.text("SELECT 1"))
        await idle.rollback()
        await other.execute("SELECT 1")
        await until(lambda: some_were_ended(live_database))
        assert (await idle.execute(sa.text("SELECT 2"))).scalar_one() == 2
        assert await (await other.execute("SELECT 3")).fetchone() == (3,)
