"""An installation to measure: a new database and the processes that use it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import sqlalchemy as sa

from benchmarks import cpu_time
from benchmarks.processes import Process, running, serving
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, WorkerRecord
from bloxserver.settings import Settings
from tests.postgres import postgres_database, postgres_server

SQLITE = "SQLite"
POSTGRESQL = "PostgreSQL"
POLL_SECONDS = 0.2
DEFAULTS: Mapping[str, str] = {}
STALL_SECONDS = 120
"""A benchmark fails if no execution ends for this time."""


@dataclass
class Installation:
    kind: str
    url: str
    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of every process that differ from the defaults."""

    def __post_init__(self) -> None:
        self.database = Database(Settings(database_url=self.url))

    @property
    def is_sqlite(self) -> bool:
        return self.kind == SQLITE

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        return {"DATABASE_URL": self.url} | dict(settings) | dict(self.settings)

    def serve(
        self, *arguments: str, settings: Mapping[str, str] = DEFAULTS, python: str | None = None
    ) -> AbstractAsyncContextManager[tuple[Process, httpx.AsyncClient]]:
        """Run `bloxserver serve` and wait until it is ready. Yields the process and a client for it."""
        return serving(self.directory, self._environment(settings), *arguments, python=python)

    @asynccontextmanager
    async def workers(self, count: int = 1, settings: Mapping[str, str] = DEFAULTS) -> AsyncIterator[list[Process]]:
        """Run processes that run executions. On SQLite there is one, which also serves the API."""
        async with AsyncExitStack() as stack:
            if self.is_sqlite:
                process, _ = await stack.enter_async_context(self.serve(settings=settings))
                yield [process]
                return
            environment = self._environment(settings)
            yield [
                await stack.enter_async_context(running(self.directory, environment, "worker")) for _ in range(count)
            ]

    async def wait_for_workers(self, count: int) -> None:
        """Wait until this many workers have sent a heartbeat."""
        async with asyncio.timeout(60):
            while True:
                if await self._scalar(sa.select(sa.func.count()).select_from(WorkerRecord)) >= count:
                    return
                await asyncio.sleep(POLL_SECONDS)

    async def wait_for_end(self, processes: list[Process]) -> None:
        """Wait until all executions have ended. Raises `RuntimeError` if a process exits or no execution ends."""
        running_now = sa.select(sa.func.count()).where(ExecutionRecord.status == ExecutionStatus.RUNNING)
        remaining, since = -1, asyncio.get_running_loop().time()
        while (count := await self._scalar(running_now)) > 0:
            for process in processes:
                process.require_running()
            moment = asyncio.get_running_loop().time()
            if count != remaining:
                remaining, since = count, moment
            elif moment - since > STALL_SECONDS:
                raise RuntimeError(f"no execution ended within {STALL_SECONDS} s; {count} are running")
            await asyncio.sleep(POLL_SECONDS)

    async def postgres_cpu_seconds(self) -> float | None:
        """Return the CPU seconds of the database server; None for SQLite and for a remote server."""
        if self.is_sqlite:
            return None
        return cpu_time.postgres_seconds(await self._scalar(sa.select(sa.func.pg_backend_pid())))

    async def _scalar(self, statement: sa.Select[int]) -> int:
        async with self.database.transaction(read_only=True) as session:
            return (await session.execute(statement)).one()[0]


class BenchmarkEnvironment:
    """Creates installations, each with a new database. They share one PostgreSQL server."""

    def __init__(self, kinds: list[str], directory: Path, server: sa.URL | None, settings: Mapping[str, str]) -> None:
        self.kinds = kinds
        self._directory = directory
        self._server = server
        self._settings = settings
        self._count = 0

    @asynccontextmanager
    async def installation(self, kind: str, *, migrate: bool = True) -> AsyncIterator[Installation]:
        """Create an installation with an empty database. `bloxserver serve` migrates it if `migrate` is false."""
        self._count += 1
        directory = self._directory / str(self._count)
        directory.mkdir()
        with self._database(kind, directory) as url:
            installation = Installation(kind, url, directory, self._settings)
            try:
                if migrate:
                    await installation.database.migrate()
                yield installation
            finally:
                await installation.database.dispose()

    @contextmanager
    def _database(self, kind: str, directory: Path) -> Iterator[str]:
        if kind == SQLITE or self._server is None:
            yield f"sqlite+aiosqlite:///{directory / 'bloxserver.db'}"
            return
        with postgres_database(self._server, f"benchmark_{os.getpid()}_{self._count}") as url:
            yield url


@contextmanager
def create_environment(kinds: list[str], settings: Mapping[str, str]) -> Iterator[BenchmarkEnvironment]:
    """Set up the environment for the block. Its PostgreSQL syncs to disk as in production."""
    with TemporaryDirectory(prefix="bloxserver-benchmark-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        if POSTGRESQL not in kinds:
            yield BenchmarkEnvironment(kinds, directory, None, settings)
            return
        with postgres_server(directory / "postgres", durable=True) as server:
            yield BenchmarkEnvironment(kinds, directory, server, settings)
