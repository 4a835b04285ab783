"""INSERT … ON CONFLICT for SQLite and PostgreSQL."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql


def insert_into(session: AsyncSession, table: type[Any]) -> postgresql.Insert:
    """Return an INSERT that supports ON CONFLICT on the session's database. Both dialects have the same methods."""
    return insert_on(session.get_bind().dialect.name, table)


def insert_on(dialect: str, table: type[Any] | sa.Table) -> postgresql.Insert:
    """The same for the dialect with this name."""
    # Imported here, because a process needs one of the dialects, and PostgreSQL's takes 0.05 s.
    statement: postgresql.Insert = import_module(f"sqlalchemy.dialects.{dialect}").insert(table)
    return statement
