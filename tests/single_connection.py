"""Serves the app with as few connections as possible: what holds one keeps everybody else waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bloxserver.api.main import app
from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.served import serving


@asynccontextmanager
async def one_connection(settings: Settings) -> AsyncIterator[Database]:
    """The database of these settings, with one connection for all requests, or one that reads and one that writes."""
    few = {"database_pool_size": 1, "database_pool_timeout_seconds": 5.0}
    database = Database(settings.model_copy(update=few))
    try:
        with serving(app, database):
            yield database
    finally:
        await database.dispose()
