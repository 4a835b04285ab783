"""An installation to measure: a database of its own, the processes on it, and a look at its rows."""

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

from benchmarks import processor_time
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
"""How long nothing may end before a benchmark gives up."""


@dataclass
class Installation:
    kind: str
    url: str
    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings that differ from the defaults in every process."""

    def __post_init__(self) -> None:
        self.database = Database(Settings(database_url=self.url))

    @property
    def is_sqlite(self) -> bool:
        return self.kind == SQLITE

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        return {"DATABASE_URL": self.url} | dict(settings) | dict(self.settings)

    def serve(
        self, *arguments: str, settings: Mapping[str, str] = DEFAULTS
    ) -> AbstractAsyncContextManager[tuple[Process, httpx.AsyncClient]]:
        """`bloxserver serve`, ready, and a client for it."""
        return serving(self.directory, self._environment(settings), *arguments)

    @asynccontextmanager
    async def workers(self, count: int = 1, settings: Mapping[str, str] = DEFAULTS) -> AsyncIterator[list[Process]]:
        """Processes that run executions: SQLite has one, which serves the API as well."""
        async with AsyncExitStack() as stack:
            if self.is_sqlite:
                process, _ = await stack.enter_async_context(self.serve(settings=settings))
                yield [process]
                return
            environment = self._environment(settings)
            yield [
                await stack.enter_async_context(running(self.directory, environment, "worker")) for _ in range(count)
            ]

    async def until_workers(self, count: int) -> None:
        """Until so many workers have said that they live."""
        async with asyncio.timeout(60):
            while True:
                if await self._scalar(sa.select(sa.func.count()).select_from(WorkerRecord)) >= count:
                    return
                await asyncio.sleep(POLL_SECONDS)

    async def until_ended(self, processes: list[Process]) -> None:
        """Until no execution is running; raises `RuntimeError` where a process ended, or nothing ends any more."""
        running_now = sa.select(sa.func.count()).where(ExecutionRecord.status == ExecutionStatus.RUNNING)
        left, since = -1, asyncio.get_running_loop().time()
        while (count := await self._scalar(running_now)) > 0:
            for process in processes:
                process.require_running()
            moment = asyncio.get_running_loop().time()
            if count != left:
                left, since = count, moment
            elif moment - since > STALL_SECONDS:
                raise RuntimeError(f"{count} executions do not end")
            await asyncio.sleep(POLL_SECONDS)

    async def postgres_cpu_seconds(self) -> float | None:
        """What the database server has used so far; None on SQLite, and where it runs elsewhere."""
        if self.is_sqlite:
            return None
        return processor_time.of_postgres(await self._scalar(sa.select(sa.func.pg_backend_pid())))

    async def _scalar(self, statement: sa.Select[int]) -> int:
        async with self.database.transaction(read_only=True) as session:
            return (await session.execute(statement)).one()[0]


class Laboratory:
    """Makes installations, each with a new database; PostgreSQL is one server for all of them."""

    def __init__(self, kinds: list[str], directory: Path, server: sa.URL | None, settings: Mapping[str, str]) -> None:
        self.kinds = kinds
        self._directory = directory
        self._server = server
        self._settings = settings
        self._count = 0

    @asynccontextmanager
    async def installation(self, kind: str) -> AsyncIterator[Installation]:
        """One with a migrated, empty database."""
        self._count += 1
        directory = self._directory / str(self._count)
        directory.mkdir()
        with self._database(kind, directory) as url:
            installation = Installation(kind, url, directory, self._settings)
            try:
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
def laboratory(kinds: list[str], settings: Mapping[str, str]) -> Iterator[Laboratory]:
    """A place for the length of the block; its PostgreSQL waits for the disk as in production."""
    with TemporaryDirectory(prefix="bloxserver-benchmark-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        if POSTGRESQL not in kinds:
            yield Laboratory(kinds, directory, None, settings)
            return
        with postgres_server(directory / "postgres", durable=True) as server:
            yield Laboratory(kinds, directory, server, settings)
