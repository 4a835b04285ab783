"""The worker: runs the executions that this process has claimed, concurrently."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import structlog

from bloxserver.engine.loops import PollLoop, cancel
from bloxserver.engine.queue import leases
from bloxserver.engine.queue.checkpoints import CheckpointWriter
from bloxserver.engine.queue.claims import ClaimedExecution, with_steps
from bloxserver.engine.queue.recovery import refund_crashes
from bloxserver.engine.queue.values import LeaseKey, LeaseLost
from bloxserver.engine.retry import retry_transaction
from bloxserver.engine.run.call_results import CallResults
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.quarantine import Quarantine
from bloxserver.engine.run.runner import MAX_CRASHES, ExecutionRunner
from bloxserver.isolation import IsolationUnavailable
from bloxserver.models.connection_pool import current_tenant
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus, Tier

log = structlog.stdlib.get_logger("bloxserver.engine")

RETRY_SECONDS = 5
"""Pause before an execution that failed on a database error is released."""

LEASE_CHECK_SECONDS = 0.5
"""How often a worker checks whether it still has the leases of its executions."""

RELEASE_SECONDS = 5
"""Time limit for releasing unfinished executions when the worker stops; after it, other workers recover them."""


class Worker:
    """Runs claimed executions until they end, suspend, or lose their lease."""

    def __init__(
        self,
        database: Database,
        clients: SharedClients,
        *,
        concurrency: int = 50,
        retry_seconds: float = RETRY_SECONDS,
        event_loop_timeout: float = 30,
    ) -> None:
        """`concurrency` executions of each tier run at once.

        A worker whose event loop was blocked for `event_loop_timeout` seconds counts as crashed; 0 disables this.
        """
        self._database = database
        self._clients = clients
        self._concurrency = concurrency
        self._retry_seconds = retry_seconds
        self._event_loop_timeout = event_loop_timeout or float("inf")
        self._was_blocked_at = float("-inf")
        """When the event loop was last blocked for `event_loop_timeout`, by the monotonic clock."""
        self._lost: list[ClaimedExecution] = []
        """Executions whose leases were lost since the last check."""
        self._checkpoints = CheckpointWriter(database)
        self.call_results = CallResults(database)
        """The caller runs it together with the worker, and wakes it when an execution has ended on any worker."""
        self._running: dict[asyncio.Task[Any], ClaimedExecution] = {}
        self._tasks: dict[UUID, asyncio.Task[Any]] = {}
        """The newest task of each execution."""
        self._quarantine = Quarantine()
        self._draining = False
        self._lease_check = PollLoop(
            self._check_leases,
            failure="checking the leases of running executions failed",
            retry_seconds=LEASE_CHECK_SECONDS,
            first_pause_seconds=LEASE_CHECK_SECONDS,
        )

    @property
    def lease_keys(self) -> frozenset[LeaseKey]:
        """The leases of the executions that run on this worker."""
        return frozenset(execution.lease_key for execution in self._running.values())

    def free_slots(self) -> Mapping[str, int]:
        """Free slots by tier: each tier has its own, so none waits for another."""
        used = Counter(execution.tier for execution in self._running.values())
        return {tier.value: max(0, self._concurrency - used[tier.value]) for tier in Tier}

    def quarantine_slots(self) -> int:
        """Free slots for executions in quarantine."""
        return self._quarantine.slots

    def begin(self, execution: ClaimedExecution, ended: Callable[[], None]) -> None:
        """Run an execution, and call `ended` when its slot is free again."""

        def free_slot(task: asyncio.Task[Any]) -> None:
            self._running.pop(task, None)
            if self._tasks.get(execution.id) is task:
                del self._tasks[execution.id]
            self._quarantine.clear(execution)
            ended()

        older = self._tasks.get(execution.id)
        if older is not None:
            self._note_lost(self._running[older])  # it was recovered from this worker, which claimed it again
            older.cancel()
        task = self._tasks[execution.id] = asyncio.create_task(self.run(execution))
        self._running[task] = execution
        self._quarantine.begin(execution)
        task.add_done_callback(free_slot)

    async def run(self, execution: ClaimedExecution) -> None:
        """Run an execution until it ends, suspends, or has lost its lease."""
        execution_id = str(execution.id)
        try:
            await self._run(execution)
        except LeaseLost:
            log.info("lease lost", execution_id=execution_id)
            self._note_lost(execution)
        except asyncio.CancelledError:
            if not self._draining:
                log.info("execution stopped: its lease was lost", execution_id=execution_id)
            raise
        except Exception as error:
            log.error(
                "execution interrupted; it is released",
                execution_id=execution_id,
                exc_info=error,
            )
            await self._release(execution)

    async def _run(self, execution: ClaimedExecution) -> None:
        current_tenant.set(execution.user_id)
        running = ExecutionRunner(
            self._database,
            self._checkpoints,
            self._clients,
            await self._with_steps(execution),
            lambda: self._quarantine.clear(execution),
            call_results=self.call_results,
        )
        try:
            await running.run()
        except (LeaseLost, IsolationUnavailable):
            raise
        except Exception as bug:
            # Without an end the execution would stay `running`.
            log.error("execution failed unexpectedly", execution_id=str(execution.id), exc_info=bug)
            await running.end(ExecutionStatus.ERROR, "internal error")

    async def _with_steps(self, execution: ClaimedExecution) -> ClaimedExecution:
        if not execution.has_steps or execution.crash_count >= MAX_CRASHES:
            # The steps are not needed, and reading them may cause the crashes.
            return execution
        return await retry_transaction(self._database, lambda session: with_steps(session, execution), read_only=True)

    async def _release(self, execution: ClaimedExecution) -> None:
        """Release the execution, whose end could not be written, so that a worker claims it again."""
        while True:
            await asyncio.sleep(self._retry_seconds)
            try:
                await retry_transaction(self._database, lambda session: leases.release_leases(session, [execution]))
            except Exception as error:
                log.error("execution not released; retrying", execution_id=str(execution.id), exc_info=error)
            else:
                return

    def check_leases(self) -> None:
        """Check now whether leases were lost; to be called on the event loop."""
        self._lease_check.wake()

    async def watch(self) -> None:
        """Stop executions that were cancelled, or recovered by another worker, until cancelled itself."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._lease_check.run())
            tasks.create_task(self._watch_event_loop())

    async def _watch_event_loop(self) -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(LEASE_CHECK_SECONDS)
            if time.monotonic() - started > self._event_loop_timeout:
                self._was_blocked_at = time.monotonic()

    async def _check_leases(self) -> float:
        await self._stop_lost()
        await self._refund_crashes()
        return LEASE_CHECK_SECONDS

    async def _stop_lost(self) -> None:
        running = dict(self._running)
        if not running:
            return
        async with self._database.transaction(read_only=True) as session:
            lost = await leases.lost_leases(session, {execution.lease_key for execution in running.values()})
        for task, execution in running.items():
            if execution.lease_key in lost:
                self._note_lost(execution)
                task.cancel()

    def _note_lost(self, execution: ClaimedExecution) -> None:
        self._lost.append(execution)
        self._lease_check.wake()

    async def _refund_crashes(self) -> None:
        """Revert the crashes that recovery counted although this worker is alive.

        Not for executions that this worker had while its event loop was blocked: one of them may have blocked it.
        """
        lost = list(self._lost)
        refunded = {execution.lease_key for execution in lost if execution.claimed_at > self._was_blocked_at}
        if refunded:
            async with self._database.transaction() as session:
                await refund_crashes(session, refunded)
        del self._lost[: len(lost)]

    async def drain(self, seconds: float) -> None:
        """Wait for running executions; those that do not end within `seconds` are released to other workers."""
        self._draining = True
        if not self._running:
            return
        await asyncio.wait(self._running, timeout=seconds)
        unfinished = dict(self._running)
        await cancel(unfinished)
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await retry_transaction(
                    self._database, lambda session: leases.release_leases(session, list(unfinished.values()))
                )
        except Exception as error:
            # Other workers recover them once the heartbeat has expired.
            log.warning("executions not released", number=len(unfinished), error=type(error).__name__)
