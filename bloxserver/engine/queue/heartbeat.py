"""The heartbeat of a worker, stored by the database's clock: the clocks of machines need not agree."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver import __version__
from bloxserver.engine.queue import heartbeat_process
from bloxserver.engine.retry import retry_transaction
from bloxserver.engine.watchdog import RETRY_SECONDS, ObserverProcess, check_config
from bloxserver.models.database import Database
from bloxserver.models.tables import WorkerRecord
from bloxserver.models.types import database_now
from bloxserver.models.upsert import insert_into
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

PROGRAM = f"import sys; sys.path[:] = sys.argv[1:]; from {heartbeat_process.__name__} import beat; beat()"
"""Imports from the same paths as this process, and not from the current directory."""


class Heartbeat:
    """Sends heartbeats from a separate process and connection, so that a blocked worker does not delay them.

    The process also checks the worker's event loop. When the loop has been blocked for `EVENT_LOOP_TIMEOUT`, it kills
    the worker, or only stops the heartbeats; other workers then recover its executions. On SQLite there is one process
    only: there the heartbeat runs on the event loop.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        worker_id: str,
        *,
        kill_when_blocked: bool = False,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._settings = settings
        self._kill_when_blocked = kill_when_blocked
        self._retry_seconds = retry_seconds
        self._database = database
        self._worker_id = worker_id
        self._beat_at: float | None = None
        self._can_declare_dead_from = 0.0
        self._beating: asyncio.Task[None] | None = None
        self._process: ObserverProcess | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether the last stored heartbeat is younger than the timeout."""
        return self._beat_at is not None and time.monotonic() - self._beat_at < self._settings.heartbeat_timeout_seconds

    @property
    def can_declare_dead(self) -> bool:
        """Whether workers without a fresh heartbeat may be declared dead.

        Not shortly after the database was unavailable or this process was frozen: they may not have sent one yet.
        """
        return self.is_fresh and time.monotonic() >= self._can_declare_dead_from

    async def start(self) -> None:
        """Return after the first heartbeat: a worker without one claims nothing."""
        await retry_transaction(self._database, self._beat)
        self._beat_at = time.monotonic()
        if self._settings.uses_sqlite:
            self._beating = asyncio.create_task(self._beat_on_loop())
        else:
            self._process = self._heartbeat_process()
            await self._process.start()

    async def end(self) -> None:
        """Stop the heartbeat and delete the worker's row: other workers recover its executions at once."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._process is not None:
            await self._process.end()
        async with self._database.transaction() as session:
            await session.execute(sa.delete(WorkerRecord).where(WorkerRecord.worker_id == self._worker_id))

    async def _beat_on_loop(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_interval_seconds)
            try:
                async with self._database.transaction() as session:
                    await self._beat(session)
                self._note_beat()
            except Exception as error:
                log.warning("heartbeat failed", error=type(error).__name__)

    def _heartbeat_process(self) -> ObserverProcess:
        check = check_config(self._settings, self._worker_id, kill=self._kill_when_blocked)
        config: heartbeat_process.HeartbeatConfig = {
            "connection": self._database.driver_arguments(),
            "worker_id": self._worker_id,
            "version": __version__,
            "log_warnings": self._settings.log_level != "ERROR",
            "interval_seconds": self._settings.heartbeat_interval_seconds,
            "timeout_seconds": self._settings.heartbeat_timeout_seconds,
            "check": check,
        }
        return ObserverProcess(
            "heartbeat",
            (sys.executable, "-P", "-c", PROGRAM, *sys.path),
            check,
            first_line=json.dumps(config).encode(),
            on_output=self._note_beat,
            retry_seconds=self._retry_seconds,
        )

    def _note_beat(self) -> None:
        moment = time.monotonic()
        if not self.is_fresh:
            self._can_declare_dead_from = moment + self._settings.heartbeat_timeout_seconds
        self._beat_at = moment

    async def _beat(self, session: AsyncSession) -> None:
        await session.execute(
            insert_into(session, WorkerRecord)
            .values(worker_id=self._worker_id, last_heartbeat_at=database_now(), version=__version__)
            .on_conflict_do_update(index_elements=[WorkerRecord.worker_id], set_={"last_heartbeat_at": database_now()})
        )
