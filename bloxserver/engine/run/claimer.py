"""Claims executions for this worker: when some may be due, and while the worker has free slots."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
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
"""Minimum time between two claims. Under load, executions that arrive in this time are claimed together."""
LARGE_CLAIM = 10
"""Executions. After a claim of as many, more are waiting most likely."""
LARGE_CLAIM_PAUSE_SECONDS = 0.015
"""Pause after a large claim. The next one is larger then, and each execution costs less."""
CLAIM_LOCK_RETRY_SECONDS = 0.015
"""Pause if another worker is claiming."""


class Claimer:
    """Polls the queue, one claim at a time."""

    def __init__(
        self, settings: Settings, database: Database, worker: Worker, worker_id: str, is_alive: Callable[[], bool]
    ) -> None:
        """`is_alive` returns whether the heartbeat of this worker is fresh. Nothing is claimed while it is not."""
        self._poll_interval_seconds = settings.poll_interval_seconds
        self._slots_per_user = concurrency_by_tier(settings)
        self._heartbeat_timeout = timedelta(seconds=settings.heartbeat_timeout_seconds)
        self._database = database
        self._worker = worker
        self._worker_id = worker_id
        self._is_alive = is_alive
        self._is_paused = False
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
            return await self._claim_due()
        except ClaimLockBusy:
            return CLAIM_LOCK_RETRY_SECONDS
        except Exception:
            self._check_orphans_at = 0.0
            raise

    async def _claim_due(self) -> float:
        """Claim what is due; returns the seconds until more is due."""
        if time.monotonic() >= self._check_orphans_at:
            async with self._database.transaction() as session:
                await release_orphaned_claims(session, self._worker_id, self._worker.lease_keys)
            self._check_orphans_at = time.monotonic() + self._orphan_check_seconds
        slots = self._worker.free_slots()
        if not self._may_claim() or not any(slots.values()):
            return self._poll_interval_seconds
        before = now()  # before the claim, so that executions that become due during the claim are included
        claimed = await self._claim(slots)
        for execution in claimed:
            self._worker.begin(execution, self.wake)
        if claimed:
            if len(claimed) >= LARGE_CLAIM:
                await asyncio.sleep(LARGE_CLAIM_PAUSE_SECONDS)
            return 0.0
        async with self._database.transaction(read_only=True) as session:
            due = await read_next_resume(session, before)
        return min(self._poll_interval_seconds, _seconds_until(due)) if due else self._poll_interval_seconds

    def _may_claim(self) -> bool:
        """Whether the heartbeat is fresh: other workers would recover at once what is claimed without one."""
        is_alive = self._is_alive()
        if is_alive == self._is_paused:
            self._is_paused = not is_alive
            if is_alive:
                log.info("claiming resumed: the heartbeat is stored again", worker=self._worker_id)
            else:
                log.warning("claiming paused: the heartbeat has expired", worker=self._worker_id)
        return is_alive

    async def _claim(self, slots: Mapping[str, int]) -> list[ClaimedExecution]:
        async with self._database.transaction(read_only=True) as session:
            claimed = await claim_executions(
                session,
                self._worker_id,
                uuid4(),
                slots,
                self._slots_per_user,
                self._worker.quarantine_slots(),
                heartbeat_timeout=self._heartbeat_timeout,
            )
        if claimed:
            metrics.CLAIM_BATCH_SIZE.observe(len(claimed))
        for execution in claimed:
            if execution.waited is not None:
                metrics.QUEUE_WAIT_SECONDS.observe(execution.waited.total_seconds())
        return claimed


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
