"""Each lost and restored database connection is logged once, for any number of loops and retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from bloxserver.engine.background.sweeper import Sweeper
from bloxserver.engine.loops import cancel
from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.sqlite_threads import join_connection_threads


@pytest.fixture(autouse=True)
async def _join_threads() -> AsyncIterator[None]:
    yield
    await join_connection_threads()


async def test_retrying_loops_log_only_the_lost_connection() -> None:
    settings = Settings(database_url="postgresql+asyncpg://user@127.0.0.1:1/x", poll_interval_seconds=0.01)
    database = Database(settings)
    tries = 0
    tried_often = asyncio.Event()

    def count_tries(*_: object) -> None:
        nonlocal tries
        tries += 1
        if tries == 5:
            tried_often.set()

    sa.event.listen(database.engine.sync_engine, "do_connect", count_tries)
    with capture_logs() as logs:
        sweepers = [asyncio.create_task(Sweeper(settings, database).run()) for _ in range(2)]
        async with asyncio.timeout(10):
            await tried_often.wait()
            await cancel(sweepers)
    await database.dispose()
    assert [(log["event"], log["reason"]) for log in logs] == [("database connection lost", "ConnectionRefusedError")]


async def test_each_lost_and_restored_connection_is_logged_once(tmp_path: Path) -> None:
    directory = tmp_path / "later"
    database = Database(Settings(database_url=f"sqlite+aiosqlite:///{directory}/x.db"))

    async def ask() -> None:
        async with database.transaction() as session:
            await session.execute(sa.text("SELECT 1"))

    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(OperationalError):
                await ask()
        directory.mkdir()
        await ask()
        await ask()
    await database.dispose()
    assert [log["event"] for log in logs] == ["database connection lost", "database connection restored"]


async def test_statement_error_is_no_lost_connection() -> None:
    database = Database(Settings(database_url="sqlite+aiosqlite:///:memory:"))
    with capture_logs() as logs, pytest.raises(OperationalError):
        async with database.transaction() as session:
            await session.execute(sa.text("SELECT * FROM missing"))
    await database.dispose()
    assert logs == []
