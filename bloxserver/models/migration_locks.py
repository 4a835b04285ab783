"""Locks that a migration takes on tables that other processes write at the same time."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

LOCK_TIMEOUT = "400ms"
"""Shorter than PostgreSQL's `deadlock_timeout`: in a deadlock, this transaction tries again and others do not fail."""
ATTEMPTS = 100


def lock_tables(connection: sa.Connection, *locks: str) -> None:
    """Execute these LOCK statements together, until the transaction ends. SQLite has one writer, and needs none."""
    if connection.dialect.name != "postgresql":
        return
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with connection.begin_nested():
                for lock in locks:
                    connection.exec_driver_sql(lock)
            break
        except DBAPIError:
            if attempt == ATTEMPTS:
                raise
    connection.exec_driver_sql("SET LOCAL lock_timeout = DEFAULT")
