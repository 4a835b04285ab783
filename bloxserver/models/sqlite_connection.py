"""Connections to SQLite that execute a statement and read its rows in one call of their thread.

aiosqlite has a thread for each connection. SQLAlchemy calls it four times per statement: for a cursor, to execute, to
fetch and to close. Each call waits for the thread and then for the event loop. Meanwhile a writing transaction holds
the lock of the file.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from typing import Any, Self

import aiosqlite

_FETCH_SIZE = 64
"""A required argument of aiosqlite, for iterating over its own cursors."""
SWITCH_INTERVAL_SECONDS = 0.0005
"""How long a thread waits for the interpreter while another one runs Python code. The default is 5 ms. The thread of a
statement waits several times: before the statement and after each step of SQLite.
"""


def shorten_switch_interval() -> None:
    """Set the switch interval of the process, so that statements do not wait long for a busy event loop."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)


def connect(database: str, **arguments: Any) -> SQLiteConnection:
    """Return a connection, which is to be awaited. `arguments` are those of `sqlite3.connect`."""
    return SQLiteConnection(lambda: sqlite3.connect(database, **arguments), _FETCH_SIZE)


class SQLiteConnection(aiosqlite.Connection):
    """A connection of aiosqlite whose cursors are `SQLiteCursor`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # As SQLAlchemy does for its connections: a connection that was not closed must not keep the process alive.
        self._thread.daemon = True

    def cursor(self) -> SQLiteCursor:  # type: ignore[override]
        return SQLiteCursor(self)

    async def commit(self) -> None:
        if self.in_transaction:
            await super().commit()

    async def rollback(self) -> None:
        """Roll back the transaction, if there is one. The pool calls this for every connection that is returned."""
        if self.in_transaction:
            await super().rollback()

    async def run(self, statement: str, parameters: Any, *, many: bool) -> tuple[sqlite3.Cursor, list[Any]]:
        """Execute a statement. Returns its closed cursor and all rows."""
        result: tuple[sqlite3.Cursor, list[Any]] = await self._execute(  # type: ignore[no-untyped-call]
            _run, self._conn, statement, parameters, many
        )
        return result


def _run(
    connection: sqlite3.Connection, statement: str, parameters: Any, many: bool
) -> tuple[sqlite3.Cursor, list[Any]]:
    cursor = connection.cursor()
    try:
        (cursor.executemany if many else cursor.execute)(statement, parameters)
        return cursor, cursor.fetchall() if cursor.description else []
    finally:
        cursor.close()


class SQLiteCursor:
    """A cursor of one statement, which has all rows when the statement was executed."""

    arraysize = 1
    description: Any = None
    rowcount = -1
    lastrowid: int | None = None

    def __init__(self, connection: SQLiteConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Any = ()) -> Self:
        return await self._run(statement, parameters, many=False)

    async def executemany(self, statement: str, parameters: Any) -> Self:
        return await self._run(statement, parameters, many=True)

    async def fetchall(self) -> Sequence[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Does nothing: the driver's cursor is closed after each statement."""

    async def _run(self, statement: str, parameters: Any, *, many: bool) -> Self:
        cursor, self._rows = await self._connection.run(statement, parameters, many=many)
        self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid
        return self
