"""Serves the app with as few connections as possible: what holds one keeps everybody else waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.main import app
from bloxserver.api.models.database import Database, get_db
from bloxserver.settings import Settings


@asynccontextmanager
async def one_connection(settings: Settings) -> AsyncIterator[Database]:
    """The database of these settings, with one connection for all requests, or one that reads and one that writes."""
    few = {"database_pool_size": 1, "database_pool_timeout_seconds": 5.0}
    database = Database(settings.model_copy(update=few))

    async def override() -> AsyncIterator[AsyncSession]:
        async with database.request_transaction() as session:
            yield session

    before = app.dependency_overrides.get(get_db)
    app.dependency_overrides[get_db] = override
    try:
        yield database
    finally:
        if before is None:
            del app.dependency_overrides[get_db]
        else:
            app.dependency_overrides[get_db] = before
        await database.dispose()
