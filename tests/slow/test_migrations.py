"""Processes that migrate one database at once."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import pytest

from bloxserver.models import migrate
from bloxserver.models.database import Database
from bloxserver.models.migrate import SchemaState
from bloxserver.settings import Settings
from tests.models.migrating import state


@pytest.fixture
async def database(live_settings: Settings) -> AsyncIterator[Database]:
    """An empty database."""
    database = Database(live_settings)
    yield database
    await database.dispose()


async def test_processes_that_migrate_at_once(database: Database, live_settings: Settings) -> None:
    code = "import asyncio; from bloxserver.models.database import database; asyncio.run(database.migrate())"
    environment = os.environ | {"DATABASE_URL": live_settings.database_url}
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, env=environment, stderr=asyncio.subprocess.PIPE
        )
        for _ in range(3)
    ]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert await state(database) is SchemaState.CURRENT
    async with database.engine.connect() as connection:
        await connection.run_sync(migrate.check)
