"""The engine of a process: a dispatcher, and a worker unless it only serves the API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

from bloxserver.api.models.database import Database
from bloxserver.engine.dispatcher import Dispatcher
from bloxserver.engine.heartbeat import Heartbeat
from bloxserver.engine.jobs import LOCAL_EXECUTOR, JobQueue
from bloxserver.engine.notices import Notifier
from bloxserver.engine.worker import Worker
from bloxserver.engine.world import Outside
from bloxserver.services.dispatch import forget_dispatches
from bloxserver.settings import Settings


class Engine:
    """To be started and stopped on one event loop, once per process at a time."""

    def __init__(self, settings: Settings, database: Database, *, works: bool) -> None:
        self._settings = settings
        self._database = database
        self._works = works
        self._jobs = JobQueue(settings)
        self._dispatcher = Dispatcher(settings, database, self._jobs)
        self._outside = Outside.of(settings)
        self._worker = Worker(database, self._outside)
        self._notifier = Notifier(database, self._outside.http, self._outside.mail, settings)
        # SQLite has one process, which goes on with what it left; elsewhere every process is a worker of its own.
        executor_id = LOCAL_EXECUTOR if settings.uses_sqlite else f"w-{uuid4().hex[:12]}"
        self._executor_id = executor_id
        self._heartbeat = Heartbeat(settings, database, self._jobs, executor_id)
        self._loops: list[asyncio.Task[None]] = []
        self._unlisten: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Begin to take work; returns when jobs are being run."""
        if not self._settings.is_production:
            await self._jobs.prepare()
        if self._works:
            await self._heartbeat.beat()
            if self._settings.uses_sqlite:
                # The queue's file may be gone or older than the database: what still runs is handed over anew.
                async with self._database.transaction() as session:
                    await forget_dispatches(session)
            await self._jobs.work(self._executor_id, self._worker.run)
            self._loop(self._heartbeat.run())
            self._loop(self._worker.watch())
            self._loop(self._notifier.run())
            self._unlisten.append(self._database.on_commit(self._worker.look))
        self._unlisten.append(self._database.on_commit(self._dispatcher.wake))
        self._loop(self._dispatcher.run())

    async def stop(self) -> None:
        """Take no more work, give what runs `DRAIN_SECONDS`, and hand the rest over."""
        for unlisten in self._unlisten:
            unlisten()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._worker.drain(self._settings.drain_seconds)
        await self._jobs.stop()
        if self._works:
            await self._heartbeat.end()
        await self._outside.aclose()

    def _loop(self, work: Coroutine[Any, Any, None]) -> None:
        self._loops.append(asyncio.create_task(work))
