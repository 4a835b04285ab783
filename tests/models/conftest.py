"""A database without a schema."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.models.migrating import empty


@pytest.fixture
async def database(live_settings: Settings) -> AsyncIterator[Database]:
    """An empty database."""
    database = Database(live_settings)
    yield database
    async with database.engine.begin() as connection:
        await connection.run_sync(empty)
    await database.dispose()
