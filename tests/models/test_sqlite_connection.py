"""Statements on SQLite: calls of the connection's thread, results and errors."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from bloxserver.models.sqlite_connection import SQLiteConnection
from tests.sqlite_threads import join_connection_threads

ITEMS = sa.table("items", sa.column("id", sa.Integer), sa.column("name", sa.String))


class CountingConnection(SQLiteConnection):
    """Records the functions that its thread was called with."""

    def __init__(self, path: Path) -> None:
        super().__init__(lambda: sqlite3.connect(path), 64)
        self.calls: list[str] = []

    async def _execute(self, fn: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.calls.append(fn.__name__)
        return await super()._execute(fn, *arguments, **options)  # type: ignore[no-untyped-call]


@pytest.fixture
async def counting(tmp_path: Path) -> CountingConnection:
    return CountingConnection(tmp_path / "test.db")


@pytest.fixture
async def connection(counting: CountingConnection) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine("sqlite+aiosqlite://", connect_args={"async_creator_fn": lambda *_, **__: counting})
    async with engine.connect() as connection:
        await connection.exec_driver_sql("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
        await connection.execute(sa.insert(ITEMS), [{"id": 1, "name": "first"}, {"id": 2, "name": "second"}])
        await connection.commit()
        counting.calls.clear()
        yield connection
    await engine.dispose()
    await join_connection_threads()


class TestCalls:
    async def test_statement_with_rows_calls_the_thread_once(
        self, connection: AsyncConnection, counting: CountingConnection
    ) -> None:
        rows = (await connection.execute(sa.select(ITEMS).order_by(ITEMS.c.id))).all()
        assert [tuple(row) for row in rows] == [(1, "first"), (2, "second")]
        assert counting.calls == ["_run"]

    async def test_many_parameters_call_the_thread_once(
        self, connection: AsyncConnection, counting: CountingConnection
    ) -> None:
        await connection.execute(sa.insert(ITEMS), [{"id": id_, "name": "more"} for id_ in range(3, 100)])
        assert counting.calls == ["_run"]
        assert await connection.scalar(sa.select(sa.func.count()).select_from(ITEMS)) == 99

    async def test_rollback_without_transaction_does_not_call_the_thread(
        self, connection: AsyncConnection, counting: CountingConnection
    ) -> None:
        await counting.rollback()
        assert counting.calls == []

    async def test_rollback_undoes_the_transaction(
        self, connection: AsyncConnection, counting: CountingConnection
    ) -> None:
        await connection.execute(sa.delete(ITEMS))
        await connection.rollback()
        assert counting.calls == ["_run", "rollback"]
        assert await connection.scalar(sa.select(sa.func.count()).select_from(ITEMS)) == 2


class TestResults:
    async def test_numbers_of_changed_rows(self, connection: AsyncConnection) -> None:
        assert (await connection.execute(sa.update(ITEMS).values(name="same"))).rowcount == 2
        assert (await connection.execute(sa.delete(ITEMS).where(ITEMS.c.id == 7))).rowcount == 0

    async def test_names_of_columns_without_rows(self, connection: AsyncConnection) -> None:
        result = await connection.execute(sa.select(ITEMS).where(ITEMS.c.id == 7))
        assert list(result.keys()) == ["id", "name"]
        assert result.all() == []

    async def test_last_inserted_id(self, connection: AsyncConnection) -> None:
        result = await connection.exec_driver_sql("INSERT INTO items (name) VALUES (?)", ("third",))
        assert result.lastrowid == 3

    async def test_statement_works_after_an_error(self, connection: AsyncConnection) -> None:
        with pytest.raises(IntegrityError, match="UNIQUE"):
            await connection.execute(sa.insert(ITEMS).values(id=1, name="again"))
        assert await connection.scalar(sa.select(ITEMS.c.name).where(ITEMS.c.id == 2)) == "second"
