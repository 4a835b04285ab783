"""Lets an application use a test's database, with the transactions of the real `get_db`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.database import Database, get_db


@contextmanager
def override_database(application: FastAPI, database: Database) -> Iterator[None]:
    """Override `get_db` until the end of the block."""

    async def override() -> AsyncIterator[AsyncSession]:
        async with database.request_transaction() as session:
            yield session

    before = dict(application.dependency_overrides)
    application.dependency_overrides[get_db] = override
    try:
        yield
    finally:
        application.dependency_overrides = before
