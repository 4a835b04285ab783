"""Reconciles flows and fires schedules. Several processes may sweep concurrently: all operations are idempotent."""

from __future__ import annotations

from datetime import timedelta

from bloxserver.clock import now
from bloxserver.engine.background.reconcile import reconcile_flows
from bloxserver.engine.background.schedules import fire_due_schedules
from bloxserver.engine.loops import PollLoop
from bloxserver.models.database import Database, WakeReason
from bloxserver.queries.flows import has_flows_to_reconcile
from bloxserver.queries.triggers import read_next_fire
from bloxserver.settings import Settings

MIN_INTERVAL_SECONDS = 0.01


class Sweeper:
    """Sweeps on every replica, at intervals and after commits that create work for it."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._loop = PollLoop(
            self._sweep,
            failure="sweep failed",
            retry_seconds=settings.poll_interval_seconds,
            min_interval_seconds=MIN_INTERVAL_SECONDS,
        )
        self._flows_wait = False
        self._ended = False
        """Whether an execution has ended since the sweep began."""

    def wake(self, work: frozenset[WakeReason]) -> None:
        """Sweep now if `work` concerns the sweeper; to be called on the event loop."""
        # A stopping flow waits for the end of its executions.
        self._ended = self._ended or WakeReason.EXECUTION in work
        if WakeReason.FLOW in work or (self._flows_wait and WakeReason.EXECUTION in work):
            self._loop.wake()

    async def run(self) -> None:
        """Sweep until cancelled."""
        await self._loop.run()

    async def _sweep(self) -> float:
        """Sweep once; returns the seconds until the next sweep."""
        self._ended = False
        try:
            await reconcile_flows(self._database, self._settings)
        finally:
            # Schedules fire even if reconciling fails.
            before = now()
            await fire_due_schedules(self._database)
        async with self._database.transaction(read_only=True) as session:
            self._flows_wait = await has_flows_to_reconcile(session)
            due = await read_next_fire(session, before)
        if self._flows_wait and self._ended:
            return 0.0
        longest = self._settings.poll_interval_seconds
        return longest if due is None else min(longest, max(0.0, (due - now()) / timedelta(seconds=1)))
