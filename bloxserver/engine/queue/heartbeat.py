"""Says that this worker lives, by the database's clock, so that the clocks of machines need not agree."""

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
"""It imports what this process would, and nothing that lies where that was started."""
TURN_SECONDS = 1
"""How often the event loop says that it turns."""
RETRY_SECONDS = 1
"""Pause before the process of the heartbeat is started again."""
END_SECONDS = 5


class Heartbeat:
    """Sends heartbeats from a process with a connection of its own: a blocked worker does not delay them.

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
        """Whether others see this worker alive."""
        return self._beat_at is not None and time.monotonic() - self._beat_at < self._settings.heartbeat_timeout_seconds

    @property
    def can_declare_dead(self) -> bool:
        """Whether silence of others means that they are dead.

        Where the database was away, or this process stood still, they may not have had the time to say that they live.
        """
        return self.is_fresh and time.monotonic() >= self._can_declare_dead_from

    async def start(self) -> None:
        """Returns after the first beat, before which no execution may be taken: who does not beat counts as dead."""
        await retry_transaction(self._database, self._beat)
        self._beat_at = time.monotonic()
        self._beating = asyncio.create_task(
            self._beat_here() if self._settings.uses_sqlite else self._beat_apart(self._order())
        )

    async def end(self) -> None:
        """Beat no more, and let others take over at once."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        async with self._database.transaction() as session:
            await session.execute(sa.delete(WorkerRecord).where(WorkerRecord.worker_id == self._worker_id))

    async def _beat_here(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_interval_seconds)
            try:
                async with self._database.transaction() as session:
                    await self._beat(session)
                self._note_beat()
            except Exception as error:
                log.warning("heartbeat failed", error=type(error).__name__)

    def _order(self) -> bytes:
        order: heartbeat_process.HeartbeatConfig = {
            "connection": self._database.driver_arguments(),
            "worker_id": self._worker_id,
            "version": __version__,
            "log_level": self._settings.log_level,
            "log_as_json": self._settings.is_production,
            "every": self._settings.heartbeat_interval_seconds,
            "dead_after": self._settings.heartbeat_timeout_seconds,
            "stuck_after": self._settings.event_loop_timeout_seconds,
        }
        return json.dumps(order).encode()

    async def _beat_apart(self, order: bytes) -> None:
        while True:
            try:
                await self._run_process(order)
            except Exception as error:
                log.warning("the process of the heartbeat cannot be run", error=type(error).__name__)
            else:
                log.warning("the process of the heartbeat ended: it is started again")
            await asyncio.sleep(self._again_seconds)

    async def _run_process(self, order: bytes) -> None:
        """Returns where the process ends though nobody asked it to."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", PROGRAM, *sys.path, stdin=PIPE, stdout=PIPE
        )
        turns, beats = process.stdin, process.stdout
        assert turns is not None  # noqa: S101
        assert beats is not None  # noqa: S101
        turning = asyncio.create_task(_turn(turns, order, self._turn_seconds))
        try:
            async for _ in beats:
                self._note_beat()
        finally:
            turning.cancel()
            await asyncio.gather(turning, return_exceptions=True)
            turns.close()  # which is what it ends with
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


async def _turn(turns: asyncio.StreamWriter, order: bytes, seconds: float) -> None:
    """Order the beats, and go on saying that the event loop turns."""
    turns.write(order)
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
