"""Takes executions from the queue for this worker: when some may be due, and while it has places."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import uuid4

import structlog

from bloxserver import metrics
from bloxserver.api.models.database import Database
from bloxserver.api.models.passing import unless_passing
from bloxserver.api.models.types import now
from bloxserver.engine.waking import wait_for_wake
from bloxserver.engine.worker import Worker
from bloxserver.queries.queue import read_next_resume
from bloxserver.services.claims import ClaimedElsewhere, TakenExecution, claim_executions, release_unknown
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

PACE_SECONDS = 0.01
"""From one look to the next at least: under load, what comes meanwhile is taken together."""
AGAIN_SECONDS = 0.015
"""When another worker was claiming."""


class Claimer:
    """One look into the queue at a time."""

    def __init__(self, settings: Settings, database: Database, worker: Worker, worker_id: str) -> None:
        self._sweep_seconds = settings.sweep_seconds
        self._places_of_user = concurrency_by_tier(settings)
        self._database = database
        self._worker = worker
        self._worker_id = worker_id
        self._woken = asyncio.Event()
        self._look_back_seconds = settings.dead_after_seconds
        self._look_back_at = time.monotonic() + self._look_back_seconds
        """When to see whether a commit whose answer was lost has taken executions; it may be carried out much later."""

    def wake(self) -> None:
        """Look now; to be called on the event loop."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled. A failure is logged and tried again by the next sweep."""
        pause = 0.0
        while True:
            await wait_for_wake(self._woken, pause)
            began = time.monotonic()
            try:
                pause = await self._look()
            except ClaimedElsewhere:
                pause = AGAIN_SECONDS
            except Exception as error:
                self._look_back_at = 0.0
                log.warning("no executions can be taken", error=type(error).__name__, exc_info=unless_passing(error))
                pause = self._sweep_seconds
            await asyncio.sleep(max(0.0, began + PACE_SECONDS - time.monotonic()))

    async def _look(self) -> float:
        """Take what is due; returns the seconds until the clock brings more."""
        if time.monotonic() >= self._look_back_at:
            async with self._database.transaction() as session:
                await release_unknown(session, self._worker_id, self._worker.holds)
            self._look_back_at = time.monotonic() + self._look_back_seconds
        places = self._worker.free_places()
        if not any(places.values()):
            return self._sweep_seconds
        before = now()  # what comes due while we look is not to be missed
        for execution in (taken := await self._claim(places)):
            self._worker.begin(execution, self.wake)
        if taken:
            return 0.0
        async with self._database.transaction(read_only=True) as session:
            due = await read_next_resume(session, before)
        return min(self._sweep_seconds, _seconds_until(due)) if due else self._sweep_seconds

    async def _claim(self, places: Mapping[str, int]) -> list[TakenExecution]:
        async with self._database.transaction() as session:
            taken = await claim_executions(
                session, self._worker_id, uuid4(), places, self._places_of_user, self._worker.suspect_places()
            )
        if taken:
            metrics.CLAIM_SIZE.observe(len(taken))
        for execution in taken:
            if execution.waited is not None:
                metrics.DISPATCH_SECONDS.observe(execution.waited.total_seconds())
        return taken


def _seconds_until(moment: datetime) -> float:
    return max(0.0, (moment - now()) / timedelta(seconds=1))


def concurrency_by_tier(settings: Settings) -> dict[str, int]:
    """How many executions of one user run at once."""
    return {
        "free": settings.concurrency_free,
        "pro": settings.concurrency_pro,
        "enterprise": settings.concurrency_enterprise,
        "high_frequency": settings.concurrency_high_frequency,
    }
