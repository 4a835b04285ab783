"""Runs one execution at a time per job: lease, pump, end."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.database import Database
from bloxserver.api.models.enums import ExecutionStatus
from bloxserver.api.models.types import now
from bloxserver.engine.organisms import parse_organism
from bloxserver.engine.patience import in_transaction
from bloxserver.engine.pump import Pump
from bloxserver.engine.records import json_text, kept_step, payload_of, step_row, storable_text
from bloxserver.engine.steps import NO_TOKENS, Change, Failed, Finished, Message, Outcome, Parked, Tokens
from bloxserver.engine.world import ExecutionWorld, Outside
from bloxserver.organism.model import FailureNotice, Organism, UnknownListener
from bloxserver.organism.problems import OrganismError
from bloxserver.services import leases
from bloxserver.services.leases import LeaseLost, TakenExecution
from bloxserver.services.notices import note_failure

log = structlog.stdlib.get_logger("bloxserver.engine")

LEASE_SECONDS = 5
"""How long taking a lease may still take when the worker stops."""

RETRY_SECONDS = 5
"""Pause before an execution is tried again that the database would not let run."""

WATCH_SECONDS = 0.5
"""How often a worker looks whether what it runs was ended, or taken by another."""


class Worker:
    """What a process does with the jobs that it gets."""

    def __init__(self, database: Database, outside: Outside, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        self._database = database
        self._outside = outside
        self._running: dict[asyncio.Task[Any], TakenExecution | None] = {}
        self._draining = False
        self._looking = asyncio.Event()

    async def run(self, execution_id: UUID, number: int) -> None:
        """Run an execution until it ends or waits. Does nothing where it has ended, is gone, or was handed on."""
        while True:
            if await self._attempt(execution_id, number):
                return
            # A job that failed is never given out again, and its execution would be `running` for ever.
            await asyncio.sleep(self._retry_seconds)

    async def _attempt(self, execution_id: UUID, number: int) -> bool:
        """Whether there is nothing left to do; False where even the end could not be written."""
        task = asyncio.create_task(self._run(execution_id, number))
        self._running[task] = None
        try:
            await task
        except LeaseLost:
            log.info("execution ended elsewhere, or gone", execution_id=str(execution_id))
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._draining or (current is not None and current.cancelling()):
                raise
            log.info("execution stopped", execution_id=str(execution_id))
        except Exception as error:
            log.error("execution cannot be run now", execution_id=str(execution_id), exc_info=error)
            return False
        finally:
            self._running.pop(task, None)
        return True

    def look(self) -> None:
        """Look now whether something was ended; to be called on the event loop."""
        self._looking.set()

    async def watch(self) -> None:
        """Stop what was cancelled, or taken by another worker. Until cancelled itself."""
        while True:
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._looking.wait()
            except TimeoutError:
                pass
            self._looking.clear()
            try:
                await self._stop_lost()
            except Exception as error:
                log.warning("cannot look after running executions", error=type(error).__name__, exc_info=error)

    async def _stop_lost(self) -> None:
        running = {task: execution for task, execution in self._running.items() if execution is not None}
        if not running:
            return
        held = {execution.id: execution.lease for execution in running.values()}
        async with self._database.transaction(read_only=True) as session:
            lost = await leases.lost_leases(session, held)
        for task, execution in running.items():
            if execution.id in lost:
                task.cancel()

    async def drain(self, seconds: float) -> None:
        """Wait for running executions; those that do not end in time, or come now, are handed over."""
        self._draining = True
        if not self._running:
            return
        await asyncio.wait(self._running, timeout=seconds)
        # Those that are only taking their lease hand over by themselves.
        late = {task: execution for task, execution in self._running.items() if execution is not None}
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for execution in late.values():
            await self._hand_over(execution)
        if self._running:
            await asyncio.wait(self._running, timeout=LEASE_SECONDS)

    async def _hand_over(self, execution: TakenExecution) -> None:
        try:
            await in_transaction(self._database, lambda session: leases.park(session, execution, now()))
        except LeaseLost:
            log.info("execution ended while it was handed over", execution_id=str(execution.id))

    async def _run(self, execution_id: UUID, number: int) -> None:
        lease = uuid4()  # drawn once, so that a repeated commit takes the same lease
        execution = await in_transaction(
            self._database, lambda session: leases.take_lease(session, execution_id, number, lease)
        )
        if execution is None:
            return
        if task := asyncio.current_task():
            self._running[task] = execution
        if self._draining:
            await self._hand_over(execution)
            return
        run = _Run(self._database, self._outside, execution)
        try:
            await run.pump()
        except LeaseLost:
            raise
        except Exception as bug:
            # Without an end the execution would be `running` for ever.
            log.error("execution failed unexpectedly", execution_id=str(execution_id), exc_info=bug)
            await run.end(ExecutionStatus.ERROR, "internal error")


class _Run:
    """One execution on this worker."""

    def __init__(self, database: Database, outside: Outside, execution: TakenExecution) -> None:
        self._database = database
        self._outside = outside
        self._execution = execution
        self._tokens = Tokens(execution.input_tokens, execution.output_tokens)
        self._stored = {step.key for step in execution.steps}
        self._on_failure: FailureNotice | None = None

    async def pump(self) -> None:
        """Go on with the execution until it ends or waits. Raises `LeaseLost`."""
        execution = self._execution
        try:
            organism = await parse_organism(execution.organism_yaml)
            self._on_failure = organism.on_failure
            entry = Message(organism.entry(execution.target).name, payload_of(execution.input_payload))
        except (OrganismError, UnknownListener) as error:
            await self.end(ExecutionStatus.ERROR, str(error))
            return
        await self._pump(organism, entry)

    async def _pump(self, organism: Organism, entry: Message) -> None:
        execution = self._execution
        kept = [kept_step(step) for step in execution.steps if organism.has(step.listener)]
        world = ExecutionWorld(self._database, self._outside, execution, entry.payload)
        sequence = max((step.sequence for step in execution.steps), default=0)
        pump = Pump(organism, kept, world, self._save, execution.called, sequence=sequence)
        seconds = organism.execution.timeout_seconds
        try:
            async with asyncio.timeout(max(0.0, seconds - execution.worked_ms / 1000)) as limit:
                await pump.run(entry)
        except TimeoutError:
            if not limit.expired():
                raise
            at_work = f"; at work: {', '.join(pump.unfinished)}" if pump.unfinished else ""
            error = f"not finished within {seconds:g} seconds (execution.timeout_seconds){at_work}"
            await self.end(ExecutionStatus.TIMEOUT, error)

    async def end(self, status: ExecutionStatus, error: str) -> None:
        """End it with what it could not come beyond."""
        await in_transaction(self._database, lambda session: self._fail(session, status, error))

    async def _save(self, change: Change) -> None:
        self._tokens = self._tokens.plus(change.used)
        rows = [step_row(step, known=step.message.key in self._stored) for step in change.steps]

        async def write(session: AsyncSession) -> None:
            # First: it is what holds the lease against others.
            await self._write_outcome(session, change.outcome, counts=change.used != NO_TOKENS)
            await leases.save_steps(session, self._execution, rows)
            if change.used != NO_TOKENS:
                await leases.note_tokens(session, self._execution, self._tokens)

        await in_transaction(self._database, write)
        self._stored |= {step.message.key for step in change.steps}

    async def _write_outcome(self, session: AsyncSession, outcome: Outcome | None, *, counts: bool) -> None:
        execution = self._execution
        match outcome:
            case None:
                await leases.hold(session, execution, to_write=counts)
            case Finished(output):
                await leases.end_execution(session, execution, ExecutionStatus.SUCCESS, output=json_text(output))
            case Failed(error):
                await self._fail(session, ExecutionStatus.ERROR, error)
            case Parked(until, called):
                await leases.park(session, execution, until, called)

    async def _fail(self, session: AsyncSession, status: ExecutionStatus, error: str) -> None:
        await leases.end_execution(session, self._execution, status, error=storable_text(error))
        if self._on_failure is not None:
            await note_failure(session, self._execution.id, self._on_failure)
