"""Records the SQL statements of a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

OVERHEAD = ("BEGIN", "SAVEPOINT", "RELEASE SAVEPOINT", "ROLLBACK", "PRAGMA")


@contextmanager
def count_statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """Record the SQL statements in the block, except those that begin and end transactions."""
    statements: list[str] = []

    def record(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not statement.startswith(OVERHEAD):
            statements.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", record)
