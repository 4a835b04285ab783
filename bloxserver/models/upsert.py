"""INSERT … ON CONFLICT for SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession


def insert_into(session: AsyncSession, table: type[Any]) -> postgresql.Insert:
    """Return an INSERT that supports ON CONFLICT on the session's database. Both dialects have the same methods."""
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement: postgresql.Insert = dialect.insert(table)
    return statement
