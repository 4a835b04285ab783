"""Runs the executions that this process has taken, side by side."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from bloxserver.api.models.database import Database
from bloxserver.api.models.enums import ExecutionStatus, Tier
from bloxserver.api.models.passing import unless_passing
from bloxserver.engine.execution import MOST_TAKEOVERS, RunningExecution
from bloxserver.engine.journal import Journal
from bloxserver.engine.patience import in_transaction
from bloxserver.engine.suspects import Suspects
from bloxserver.engine.waking import cancel, wait_for_wake
from bloxserver.engine.world import Outside
from bloxserver.services import leases
from bloxserver.services.claims import Hold, TakenExecution, with_steps
from bloxserver.services.leases import LeaseLost

log = structlog.stdlib.get_logger("bloxserver.engine")

RETRY_SECONDS = 5
"""Pause before an execution is tried again that the database would not let run."""

WATCH_SECONDS = 0.5
"""How often a worker looks whether what it runs was ended, or taken by another."""

HAND_OVER_SECONDS = 5
"""How long it may take to hand over what has not ended when the worker stops; after that others take it over."""


class Worker:
    """What a process does with the executions that it takes."""

    def __init__(
        self, database: Database, outside: Outside, *, concurrency: int = 50, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        """`concurrency` executions of each tier run at once."""
        self._database = database
        self._outside = outside
        self._concurrency = concurrency
        self._retry_seconds = retry_seconds
        self._journal = Journal(database)
        self._running: dict[asyncio.Task[Any], TakenExecution] = {}
        self._suspects = Suspects()
        self._draining = False
        self._looking = asyncio.Event()

    @property
    def holds(self) -> frozenset[Hold]:
        """What this worker has, or takes itself to have."""
        return frozenset(execution.hold for execution in self._running.values())

    def free_places(self) -> Mapping[str, int]:
        """How many executions more it can run, by tier: none waits behind those of another tier."""
        taken = Counter(execution.tier for execution in self._running.values())
        return {tier.value: max(0, self._concurrency - taken[tier.value]) for tier in Tier}

    def suspect_places(self) -> int:
        """How many executions more it can run that workers died with."""
        return self._suspects.places

    def begin(self, execution: TakenExecution, ended: Callable[[], None]) -> None:
        """Run an execution, and call `ended` when its place is free again."""

        def leave(task: asyncio.Task[Any]) -> None:
            self._running.pop(task, None)
            self._suspects.clear(execution)
            ended()

        for older, taken in self._running.items():
            if taken.id == execution.id:
                older.cancel()  # it was taken from this worker, which has not noticed yet
        task = asyncio.create_task(self.run(execution))
        self._running[task] = execution
        self._suspects.begin(execution)
        task.add_done_callback(leave)

    async def run(self, execution: TakenExecution) -> None:
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
            await self._give_back(execution)

    async def _run(self, execution: TakenExecution) -> None:
        running = RunningExecution(
            self._database,
            self._journal,
            self._outside,
            await self._with_steps(execution),
            lambda: self._suspects.clear(execution),
        )
        try:
            await running.run()
        except LeaseLost:
            raise
        except Exception as bug:
            # Without an end the execution would be `running` for ever.
            log.error("execution failed unexpectedly", execution_id=str(execution.id), exc_info=bug)
            await running.end(ExecutionStatus.ERROR, "internal error")

    async def _with_steps(self, execution: TakenExecution) -> TakenExecution:
        if not execution.has_steps or execution.takeovers >= MOST_TAKEOVERS:
            # What is given up needs none: they may be what workers die of.
            return execution
        return await in_transaction(self._database, lambda session: with_steps(session, execution), read_only=True)

    async def _give_back(self, execution: TakenExecution) -> None:
        """Have it taken anew, by whichever worker; not even its end could be written."""
        while True:
            await asyncio.sleep(self._retry_seconds)
            try:
                await in_transaction(self._database, lambda session: leases.hand_over(session, [execution]))
            except Exception as error:
                log.error("execution cannot be given back", execution_id=str(execution.id), exc_info=error)
            else:
                return

    def look(self) -> None:
        """Look now whether something was ended; to be called on the event loop."""
        self._looking.set()

    async def watch(self) -> None:
        """Stop what was cancelled, or taken by another worker. Until cancelled itself."""
        while True:
            await wait_for_wake(self._looking, WATCH_SECONDS)
            try:
                await self._stop_lost()
            except Exception as error:
                log.warning(
                    "cannot look after running executions", error=type(error).__name__, exc_info=unless_passing(error)
                )

    async def _stop_lost(self) -> None:
        running = dict(self._running)
        if not running:
            return
        async with self._database.transaction(read_only=True) as session:
            lost = await leases.lost_holds(session, {execution.hold for execution in running.values()})
        for task, execution in running.items():
            if execution.hold in lost:
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
            async with asyncio.timeout(HAND_OVER_SECONDS):
                await in_transaction(self._database, lambda session: leases.hand_over(session, list(late.values())))
        except Exception as error:
            # They find out by our silence.
            log.warning("executions could not be handed over", number=len(late), error=type(error).__name__)
