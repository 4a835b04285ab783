"""Runs the executions that this process has taken, side by side."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from bloxserver.engine.loops import PollLoop, cancel
from bloxserver.engine.queue import leases
from bloxserver.engine.queue.checkpoints import CheckpointWriter
from bloxserver.engine.queue.claims import ClaimedExecution, with_steps
from bloxserver.engine.queue.values import LeaseKey, LeaseLost
from bloxserver.engine.retry import retry_transaction
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.quarantine import Quarantine
from bloxserver.engine.run.runner import MAX_CRASHES, ExecutionRunner
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus, Tier

log = structlog.stdlib.get_logger("bloxserver.engine")

RETRY_SECONDS = 5
"""Pause before an execution is tried again that the database would not let run."""

WATCH_SECONDS = 0.5
"""How often a worker looks whether what it runs was ended, or taken by another."""

RELEASE_SECONDS = 5
"""How long it may take to hand over what has not ended when the worker stops; after that others take it over."""


class Worker:
    """What a process does with the executions that it takes."""

    def __init__(
        self, database: Database, clients: SharedClients, *, concurrency: int = 50, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        """`concurrency` executions of each tier run at once."""
        self._database = database
        self._clients = clients
        self._concurrency = concurrency
        self._retry_seconds = retry_seconds
        self._checkpoints = CheckpointWriter(database)
        self._running: dict[asyncio.Task[Any], ClaimedExecution] = {}
        self._quarantine = Quarantine()
        self._draining = False
        self._lease_check = PollLoop(
            self._check_leases,
            failure="checking the leases of running executions failed",
            retry_seconds=WATCH_SECONDS,
            first_pause_seconds=WATCH_SECONDS,
        )

    @property
    def lease_keys(self) -> frozenset[LeaseKey]:
        """What this worker has, or takes itself to have."""
        return frozenset(execution.lease_key for execution in self._running.values())

    def free_slots(self) -> Mapping[str, int]:
        """How many executions more it can run, by tier: none waits behind those of another tier."""
        taken = Counter(execution.tier for execution in self._running.values())
        return {tier.value: max(0, self._concurrency - taken[tier.value]) for tier in Tier}

    def quarantine_slots(self) -> int:
        """How many executions more it can run that workers died with."""
        return self._quarantine.places

    def begin(self, execution: ClaimedExecution, ended: Callable[[], None]) -> None:
        """Run an execution, and call `ended` when its place is free again."""

        def leave(task: asyncio.Task[Any]) -> None:
            self._running.pop(task, None)
            self._quarantine.clear(execution)
            ended()

        for older, taken in self._running.items():
            if taken.id == execution.id:
                older.cancel()  # it was taken from this worker, which has not noticed yet
        task = asyncio.create_task(self.run(execution))
        self._running[task] = execution
        self._quarantine.begin(execution)
        task.add_done_callback(leave)

    async def run(self, execution: ClaimedExecution) -> None:
        """Run an execution until it ends or waits, or until it is plain that another worker has it."""
        about = {"execution_id": str(execution.id)}
        try:
            await self._run(execution)
        except LeaseLost:
            log.info("execution ended elsewhere, or gone", **about)
        except asyncio.CancelledError:
            if not self._draining:
                log.info("execution stopped", **about)
            raise
        except Exception as error:
            log.error("execution cannot be run now", **about, exc_info=error)
            await self._release(execution)

    async def _run(self, execution: ClaimedExecution) -> None:
        running = ExecutionRunner(
            self._database,
            self._checkpoints,
            self._clients,
            await self._with_steps(execution),
            lambda: self._quarantine.clear(execution),
        )
        try:
            await running.run()
        except LeaseLost:
            raise
        except Exception as bug:
            # Without an end the execution would be `running` for ever.
            log.error("execution failed unexpectedly", execution_id=str(execution.id), exc_info=bug)
            await running.end(ExecutionStatus.ERROR, "internal error")

    async def _with_steps(self, execution: ClaimedExecution) -> ClaimedExecution:
        if not execution.has_steps or execution.crash_count >= MAX_CRASHES:
            # What is given up needs none: they may be what workers die of.
            return execution
        return await retry_transaction(self._database, lambda session: with_steps(session, execution), read_only=True)

    async def _release(self, execution: ClaimedExecution) -> None:
        """Have it taken anew, by whichever worker; not even its end could be written."""
        while True:
            await asyncio.sleep(self._retry_seconds)
            try:
                await retry_transaction(self._database, lambda session: leases.release_leases(session, [execution]))
            except Exception as error:
                log.error("execution cannot be given back", execution_id=str(execution.id), exc_info=error)
            else:
                return

    def check_leases(self) -> None:
        """Check now whether leases were lost; to be called on the event loop."""
        self._lease_check.wake()

    async def watch(self) -> None:
        """Stop executions that were cancelled, or recovered by another worker, until cancelled itself."""
        await self._lease_check.run()

    async def _check_leases(self) -> float:
        await self._stop_lost()
        return WATCH_SECONDS

    async def _stop_lost(self) -> None:
        running = dict(self._running)
        if not running:
            return
        async with self._database.transaction(read_only=True) as session:
            lost = await leases.lost_leases(session, {execution.lease_key for execution in running.values()})
        for task, execution in running.items():
            if execution.lease_key in lost:
                task.cancel()

    async def drain(self, seconds: float) -> None:
        """Wait for running executions; those that do not end in time are handed over to other workers."""
        self._draining = True
        if not self._running:
            return
        await asyncio.wait(self._running, timeout=seconds)
        late = dict(self._running)
        await cancel(late)
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await retry_transaction(
                    self._database, lambda session: leases.release_leases(session, list(late.values()))
                )
        except Exception as error:
            # They find out by our silence.
            log.warning("executions could not be handed over", number=len(late), error=type(error).__name__)
