"""Takes executions from the queue for this worker: when some may be due, and while it has places."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import uuid4

import structlog

from bloxserver.clock import now
from bloxserver.engine.loops import PollLoop
from bloxserver.engine.queue.claims import ClaimedExecution, claim_executions, release_orphaned_claims
from bloxserver.engine.queue.selection import read_next_resume
from bloxserver.engine.queue.values import ClaimLockBusy
from bloxserver.engine.run.worker import Worker
from bloxserver.models.database import Database
from bloxserver.observability import metrics
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

MIN_INTERVAL_SECONDS = 0.01
"""Between two claims: under load, executions that arrive meanwhile are claimed together."""
CLAIM_LOCK_RETRY_SECONDS = 0.015
"""Pause where another worker is claiming."""


class Claimer:
    """One look into the queue at a time."""

    def __init__(self, settings: Settings, database: Database, worker: Worker, worker_id: str) -> None:
        self._poll_interval_seconds = settings.poll_interval_seconds
        self._slots_per_user = concurrency_by_tier(settings)
        self._database = database
        self._worker = worker
        self._worker_id = worker_id
        self._loop = PollLoop(
            self._poll,
            failure="claiming executions failed",
            retry_seconds=settings.poll_interval_seconds,
            min_interval_seconds=MIN_INTERVAL_SECONDS,
        )
        self._orphan_check_seconds = settings.heartbeat_timeout_seconds
        self._check_orphans_at = time.monotonic() + self._orphan_check_seconds
        """When to release claims whose commit succeeded although its answer was lost; it may take effect much later."""

    def wake(self) -> None:
        """Look for executions now; to be called on the event loop."""
        self._loop.wake()

    async def run(self) -> None:
        """Claim executions until cancelled."""
        await self._loop.run()

    async def _poll(self) -> float:
        try:
            return await self._look()
        except ClaimLockBusy:
            return CLAIM_LOCK_RETRY_SECONDS
        except Exception:
            self._check_orphans_at = 0.0
            raise

    async def _look(self) -> float:
        """Claim what is due; returns the seconds until more is due."""
        if time.monotonic() >= self._check_orphans_at:
            async with self._database.transaction() as session:
                await release_orphaned_claims(session, self._worker_id, self._worker.lease_keys)
            self._check_orphans_at = time.monotonic() + self._orphan_check_seconds
        places = self._worker.free_slots()
        if not any(places.values()):
            return self._poll_interval_seconds
        before = now()  # includes what becomes due during the claim
        for execution in (taken := await self._claim(places)):
            self._worker.begin(execution, self.wake)
        if taken:
            return 0.0
        async with self._database.transaction(read_only=True) as session:
            due = await read_next_resume(session, before)
        return min(self._poll_interval_seconds, _seconds_until(due)) if due else self._poll_interval_seconds

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
