"""Says that this worker lives, by the database's clock, so that the clocks of machines need not agree."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from functools import partial

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver import __version__
from bloxserver.api.models.database import Database
from bloxserver.api.models.statements import insert_into
from bloxserver.api.models.tables import WorkerRecord
from bloxserver.api.models.types import database_now
from bloxserver.engine.patience import in_transaction
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

ALIVE_SECONDS = 1
"""How often the event loop says that it turns."""


class Heartbeat:
    """Beats in a thread and on a connection of its own: whatever holds up the event loop does not hold up the beat.

    A loop that has not turned for `STUCK_AFTER_SECONDS` counts as dead all the same, so that others take its work. On
    SQLite, where there is nobody who could, it beats on the loop.
    """

    def __init__(self, settings: Settings, database: Database, worker_id: str) -> None:
        self._settings = settings
        self._database = database
        self._worker_id = worker_id
        self._turned_at = time.monotonic()
        self._beat_at: float | None = None
        self._judges_from = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._stop: Future[None] = Future()

    @property
    def is_fresh(self) -> bool:
        """Whether others see this worker alive."""
        return self._beat_at is not None and time.monotonic() - self._beat_at < self._settings.dead_after_seconds

    @property
    def may_judge(self) -> bool:
        """Whether silence of others means that they are dead.

        Where the database was away, or this process stood still, they may not have had the time to say that they live.
        """
        return self.is_fresh and time.monotonic() >= self._judges_from

    async def start(self) -> None:
        """Returns after the first beat, before which no execution may be taken: who does not beat counts as dead."""
        await in_transaction(self._database, self._beat)
        self._beat_at = time.monotonic()
        self._tasks.append(asyncio.create_task(self._turn()))
        if self._settings.uses_sqlite:
            self._tasks.append(asyncio.create_task(self._beat_on(self._database, asyncio.Event())))
        else:
            beat = partial(asyncio.run, self._beat_apart())
            self._thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
            self._thread.start()

    async def end(self) -> None:
        """Beat no more, and let others take over at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._thread is not None:
            self._stop.set_result(None)
            await asyncio.to_thread(self._thread.join)
        async with self._database.transaction() as session:
            await session.execute(sa.delete(WorkerRecord).where(WorkerRecord.executor_id == self._worker_id))

    async def _turn(self) -> None:
        while True:
            self._turned_at = time.monotonic()
            await asyncio.sleep(ALIVE_SECONDS)

    async def _beat_apart(self) -> None:
        database = Database(self._settings.model_copy(update={"database_pool_size": 1}))
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop.add_done_callback(lambda _: loop.call_soon_threadsafe(stop.set))
        try:
            await self._beat_on(database, stop)
        finally:
            await database.dispose()

    async def _beat_on(self, database: Database, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                async with asyncio.timeout(self._settings.heartbeat_seconds):
                    await stop.wait()
                return
            except TimeoutError:
                pass
            silent = time.monotonic() - self._turned_at
            if silent > self._settings.stuck_after_seconds:
                log.error("the event loop is stuck: others take over", seconds=round(silent))
                continue
            try:
                async with asyncio.timeout(self._settings.dead_after_seconds), database.transaction() as session:
                    await self._beat(session)
                self._note_beat()
            except Exception as error:
                log.warning("heartbeat failed", error=type(error).__name__)

    def _note_beat(self) -> None:
        moment = time.monotonic()
        if not self.is_fresh:
            self._judges_from = moment + self._settings.dead_after_seconds
        self._beat_at = moment

    async def _beat(self, session: AsyncSession) -> None:
        await session.execute(
            insert_into(session, WorkerRecord)
            .values(executor_id=self._worker_id, beat_at=database_now(), version=__version__)
            .on_conflict_do_update(index_elements=[WorkerRecord.executor_id], set_={"beat_at": database_now()})
        )
