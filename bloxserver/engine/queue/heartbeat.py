"""The heartbeat of a worker, stored by the database's clock: the clocks of machines need not agree."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver import __version__
from bloxserver.engine.queue import heartbeat_process
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.database import Database
from bloxserver.models.tables import WorkerRecord
from bloxserver.models.types import database_now
from bloxserver.models.upsert import insert_into
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

PROGRAM = f"import sys; sys.path[:] = sys.argv[1:]; from {heartbeat_process.__name__} import beat; beat()"
"""Imports from the same paths as this process, and not from the current directory."""
TURN_SECONDS = 1
"""How often the event loop reports to the heartbeat process."""
RETRY_SECONDS = 1
"""Pause before the heartbeat process is restarted."""
END_SECONDS = 5


class Heartbeat:
    """Sends heartbeats from a separate process and connection, so that a blocked worker does not delay them.

    The heartbeats stop when the worker's event loop has been stuck for `EVENT_LOOP_TIMEOUT_SECONDS`; other workers then
    recover its executions. On SQLite there is one process only: there the heartbeat runs on the event loop.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        worker_id: str,
        *,
        turn_seconds: float = TURN_SECONDS,
        again_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._settings = settings
        self._turn_seconds = turn_seconds
        self._again_seconds = again_seconds
        self._database = database
        self._worker_id = worker_id
        self._beat_at: float | None = None
        self._can_declare_dead_from = 0.0
        self._beating: asyncio.Task[None] | None = None

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
        self._beating = asyncio.create_task(
            self._beat_on_loop() if self._settings.uses_sqlite else self._keep_process(self._config())
        )

    async def end(self) -> None:
        """Stop the heartbeat and delete the worker's row: other workers recover its executions at once."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
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

    def _config(self) -> bytes:
        config: heartbeat_process.HeartbeatConfig = {
            "connection": self._database.driver_arguments(),
            "worker_id": self._worker_id,
            "version": __version__,
            "log_level": self._settings.log_level,
            "log_as_json": self._settings.is_production,
            "interval_seconds": self._settings.heartbeat_interval_seconds,
            "timeout_seconds": self._settings.heartbeat_timeout_seconds,
            "event_loop_timeout_seconds": self._settings.event_loop_timeout_seconds,
        }
        return json.dumps(config).encode()

    async def _keep_process(self, config: bytes) -> None:
        while True:
            try:
                await self._run_process(config)
            except Exception as error:
                log.warning("heartbeat process not started", error=type(error).__name__)
            else:
                log.warning("heartbeat process ended; restarting it")
            await asyncio.sleep(self._again_seconds)

    async def _run_process(self, config: bytes) -> None:
        """Run the heartbeat process; returns if it ends unexpectedly."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", PROGRAM, *sys.path, stdin=PIPE, stdout=PIPE
        )
        turns, beats = process.stdin, process.stdout
        assert turns is not None  # noqa: S101
        assert beats is not None  # noqa: S101
        reporting = asyncio.create_task(_report_turns(turns, config, self._turn_seconds))
        try:
            async for _ in beats:
                self._note_beat()
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
            turns.close()  # ends the process
            await _end(process)

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


async def _report_turns(turns: asyncio.StreamWriter, config: bytes, seconds: float) -> None:
    """Send the configuration, and then a line for each turn of the event loop, `seconds` apart."""
    turns.write(config)
    while True:
        turns.write(b"\n")
        await turns.drain()
        await asyncio.sleep(seconds)


async def _end(process: Process) -> None:
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
