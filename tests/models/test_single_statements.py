from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from bloxserver.models.database import Database
from bloxserver.models.tables import UserRecord
from tests.factories import create_user

NAMES = sa.select(UserRecord.name).where(UserRecord.name == sa.bindparam("wanted"))


async def test_each_statement_reads_what_was_committed_before_it(live_database: Database) -> None:
    assert (await live_database.statements.execute(NAMES, {"wanted": "Ada"})).all() == []
    async with live_database.transaction() as session:
        await create_user(session, name="Ada")
    assert (await live_database.statements.execute(NAMES, {"wanted": "Ada"})).all() == [("Ada",)]


async def test_connections_are_returned_after_errors_and_cancellations(live_database: Database) -> None:
    statements = live_database.statements
    with pytest.raises(DBAPIError):
        await statements.execute(sa.text("SELECT unknown"), {})
    task = asyncio.create_task(statements.execute(NAMES, {"wanted": "Ada"}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reading = live_database.pools().values()
    assert [pool.checkedout() for pool in reading if hasattr(pool, "checkedout")] == [0] * len(reading)


async def test_dialect_is_that_of_the_database(live_database: Database) -> None:
    is_sqlite = live_database.statements.get_bind().dialect.name == "sqlite"
    assert is_sqlite == live_database.is_sqlite
