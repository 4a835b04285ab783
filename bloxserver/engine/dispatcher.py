"""Hands what was accepted to the job queue, and settles flows that were asked to start or stop."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from bloxserver.api.models.database import Database
from bloxserver.api.models.types import now
from bloxserver.engine.jobs import Job, JobQueue, concurrency_by_tier
from bloxserver.engine.schedules import fire_due_schedules
from bloxserver.engine.settle import settle_flows
from bloxserver.queries.dispatch import read_due_executions, read_next_resume
from bloxserver.queries.triggers import read_next_fire
from bloxserver.services.dispatch import mark_dispatched
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

BATCH = 100
LEAD = 2
"""Executions of a user that are with the engine, as a multiple of those that run at once: enough to keep it busy."""
SHORTEST_PAUSE_SECONDS = 0.01


class Dispatcher:
    """Runs on every replica: woken by each commit that leaves work, and by the clock. Doing its work twice is once."""

    def __init__(self, settings: Settings, database: Database, jobs: JobQueue) -> None:
        self._sweep_seconds = settings.sweep_seconds
        self._settings = settings
        self._places = {tier: LEAD * count for tier, count in concurrency_by_tier(settings).items()}
        self._database = database
        self._jobs = jobs
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look for work now; to be called on the event loop."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled. A failure is logged and tried again by the next sweep."""
        pause = 0.0
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            try:
                pause = await self._sweep()
            except Exception as error:
                log.warning("sweep failed", error=type(error).__name__, exc_info=error)
                pause = self._sweep_seconds

    async def _sweep(self) -> float:
        """Do all there is to do; returns the seconds until the clock brings more."""
        await settle_flows(self._database, self._settings)
        await fire_due_schedules(self._database)
        while await self._dispatch():
            pass
        async with self._database.transaction(read_only=True) as session:
            times = [await read_next_resume(session, now()), await read_next_fire(session, now())]
        seconds = [(time - now()) / timedelta(seconds=1) for time in times if time is not None]
        return min(self._sweep_seconds, max(SHORTEST_PAUSE_SECONDS, min(seconds, default=self._sweep_seconds)))

    async def _dispatch(self) -> bool:
        """Hand over one batch; whether there may be more."""
        async with self._database.transaction(read_only=True) as session:
            due = await read_due_executions(session, now(), self._places, BATCH)
        if not due:
            return False
        await self._jobs.enqueue([Job(*execution) for execution in due])
        async with self._database.transaction() as session:
            await mark_dispatched(session, [(execution.execution_id, execution.number) for execution in due])
        return len(due) == BATCH
