"""Takes executions from the queue for this worker: when some may be due, and while it has places."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import uuid4

import structlog

from bloxserver.clock import now
from bloxserver.engine.loops import wait_for_wake
from bloxserver.engine.queue.claims import ClaimedExecution, ClaimLockBusy, claim_executions, release_orphaned_claims
from bloxserver.engine.queue.selection import read_next_resume
from bloxserver.engine.run.worker import Worker
from bloxserver.models.database import Database
from bloxserver.models.transient_errors import unless_transient
from bloxserver.observability import metrics
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

MIN_INTERVAL_SECONDS = 0.01
"""From one look to the next at least: under load, what comes meanwhile is taken together."""
RETRY_SECONDS = 0.015
"""When another worker was claiming."""


class Claimer:
    """One look into the queue at a time."""

    def __init__(self, settings: Settings, database: Database, worker: Worker, worker_id: str) -> None:
        self._sweep_seconds = settings.poll_interval_seconds
        self._slots_per_user = concurrency_by_tier(settings)
        self._database = database
        self._worker = worker
        self._worker_id = worker_id
        self._woken = asyncio.Event()
        self._look_back_seconds = settings.heartbeat_timeout_seconds
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
            except ClaimLockBusy:
                pause = RETRY_SECONDS
            except Exception as error:
                self._look_back_at = 0.0
                log.warning("no executions can be taken", error=type(error).__name__, exc_info=unless_transient(error))
                pause = self._sweep_seconds
            await asyncio.sleep(max(0.0, began + MIN_INTERVAL_SECONDS - time.monotonic()))

    async def _look(self) -> float:
        """Take what is due; returns the seconds until the clock brings more."""
        if time.monotonic() >= self._look_back_at:
            async with self._database.transaction() as session:
                await release_orphaned_claims(session, self._worker_id, self._worker.lease_keys)
            self._look_back_at = time.monotonic() + self._look_back_seconds
        places = self._worker.free_slots()
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

    async def _claim(self, places: Mapping[str, int]) -> list[ClaimedExecution]:
        async with self._database.transaction() as session:
            taken = await claim_executions(
                session, self._worker_id, uuid4(), places, self._slots_per_user, self._worker.quarantine_slots()
            )
        if taken:
            metrics.CLAIM_BATCH_SIZE.observe(len(taken))
        for execution in taken:
            if execution.waited is not None:
                metrics.QUEUE_WAIT_SECONDS.observe(execution.waited.total_seconds())
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
