"""Statements that SQLite and PostgreSQL both know and SQLAlchemy has no common word for."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession


def insert_into(session: AsyncSession, table: type[Any]) -> postgresql.Insert:
    """An INSERT that takes ON CONFLICT, for the session's database; both dialects spell it alike."""
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement: postgresql.Insert = dialect.insert(table)
    return statement
