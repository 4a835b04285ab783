"""The engine of a process: a sweeper, and a worker unless it only serves the API."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from uuid import uuid4

import structlog

from bloxserver import metrics
from bloxserver.api.models.database import Database, Work
from bloxserver.engine.bell import Bell
from bloxserver.engine.claimer import Claimer
from bloxserver.engine.heartbeat import Heartbeat
from bloxserver.engine.notices import Notifier
from bloxserver.engine.retention import Retention
from bloxserver.engine.sweeper import Sweeper
from bloxserver.engine.takeover import TakeOver
from bloxserver.engine.waking import cancel, keep_running
from bloxserver.engine.worker import Worker
from bloxserver.engine.world import Outside
from bloxserver.services.claims import release_all, release_unknown
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")


class _State(enum.Enum):
    STARTING = enum.auto()
    WORKING = enum.auto()
    DRAINING = enum.auto()


class Engine:
    """To be started and stopped on one event loop, once."""

    def __init__(self, settings: Settings, database: Database, *, works: bool) -> None:
        self._settings = settings
        self._database = database
        self._works = works
        self.worker_id = f"w-{uuid4().hex[:12]}"
        """What `bloxserver status` calls this process, where it runs executions."""
        self._outside = Outside.of(settings)
        self._sweeper = Sweeper(settings, database)
        self._worker = Worker(database, self._outside, concurrency=settings.worker_concurrency)
        self._claimer = Claimer(settings, database, self._worker, self.worker_id)
        self._notifier = Notifier(database, self._outside.http, self._outside.mail, settings)
        self._heartbeat = Heartbeat(settings, database, self.worker_id)
        self._bell = None if settings.uses_sqlite else Bell(settings, self._wake)
        self._state = _State.STARTING
        self._intake: list[asyncio.Task[None]] = []
        """Loops that bring new work."""
        self._loops: list[asyncio.Task[None]] = []
        self._unlisten: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Begin to take work; returns when executions are being run."""
        self._unlisten.append(self._database.on_commit(self._wake))
        if self._bell is not None:
            self._unlisten.append(self._database.on_commit(self._bell.ring))
            self._loop(self._bell.run)
        if self._works:
            await self._heartbeat.start()
            if self._settings.uses_sqlite:
                # One process has the database, and it has just begun: nobody else is at anything.
                async with self._database.transaction() as session:
                    released = await release_all(session)
                metrics.TAKEOVERS.inc(released)
            else:
                self._loop(TakeOver(self._settings, self._database, self._heartbeat).run)
            self._intake.append(asyncio.create_task(keep_running(self._claimer.run)))
            self._loop(self._worker.watch)
            self._loop(self._notifier.run)
            self._loop(Retention(self._settings, self._database).run)
        self._intake.append(asyncio.create_task(keep_running(self._sweeper.run)))
        self._state = _State.WORKING

    @property
    def problem(self) -> str | None:
        """Why this process runs no executions now, in words; None where it does."""
        if self._state is _State.STARTING:
            return "the engine has not started yet"
        if self._state is _State.DRAINING:
            return "the engine is stopping: it takes no more work"
        if self._works and not self._heartbeat.is_fresh:
            return "the heartbeat cannot be stored: other workers take this one for dead"
        return None

    async def stop(self) -> None:
        """Take no more work, give what runs `DRAIN_SECONDS`, and hand the rest over."""
        self._state = _State.DRAINING
        await cancel(self._intake)
        if self._works:
            # What ends now is still told to others, and what is cancelled is still noticed.
            await self._worker.drain(self._settings.drain_seconds)
        for unlisten in self._unlisten:
            unlisten()
        await cancel(self._loops)
        if self._works:
            await self._leave()
        await self._outside.aclose()

    async def _leave(self) -> None:
        for leave in (self._release, self._heartbeat.end):
            try:
                await leave()
            except Exception as error:
                # They find out by our silence.
                log.warning("other workers could not be told of the end", error=type(error).__name__)

    async def _release(self) -> None:
        async with self._database.transaction() as session:
            await release_unknown(session, self.worker_id, ())

    def _wake(self, work: frozenset[Work]) -> None:
        self._sweeper.wake(work)
        if not self._works:
            return
        if Work.EXECUTION in work:
            self._claimer.wake()
        if Work.CANCELLATION in work:
            self._worker.look()
        if Work.NOTICE in work:
            self._notifier.wake()

    def _loop(self, loop: Callable[[], Awaitable[None]]) -> None:
        self._loops.append(asyncio.create_task(keep_running(loop)))
