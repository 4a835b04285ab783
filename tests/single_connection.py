"""Serves the application with a single database connection, so that a held connection blocks other requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bloxserver.api.main import app
from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.database_override import override_database


@asynccontextmanager
async def single_connection(settings: Settings) -> AsyncIterator[Database]:
    """Open the database with one connection per pool: on SQLite, one for reading and one for writing."""
    limits = {"database_pool_size": 1, "database_pool_timeout_seconds": 5.0}
    database = Database(settings.model_copy(update=limits))
    try:
        with override_database(app, database):
            yield database
    finally:
        await database.dispose()
