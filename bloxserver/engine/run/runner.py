"""Runs one claimed execution from its saved steps until it ends or suspends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.base import BUDGET_WARNINGS, EXECUTION_BUDGET_WARNING, BlockError, StepWarning
from bloxserver.clients.memory import MemoryBudget, MemoryLimitReached
from bloxserver.clock import now
from bloxserver.engine.queue import leases
from bloxserver.engine.queue.checkpoints import (
    Checkpoint,
    CheckpointWriter,
    reset_crash_count,
    save_steps,
)
from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.retry import retry_transaction
from bloxserver.engine.run.call_results import CallResults
from bloxserver.engine.run.context import ClaimedExecutionContext, SharedClients
from bloxserver.engine.run.isolated_tasks import IsolatedTasks
from bloxserver.engine.run.large_messages import read_large_input
from bloxserver.engine.run.lease_check import LeaseCheck
from bloxserver.engine.run.messages import Change, Failed, Finished, Message, Outcome, Suspended, Tokens
from bloxserver.engine.run.pump import Pump
from bloxserver.engine.run.serialization import JsonTextCache, payload_of, step_of_row, step_row, text_of_output
from bloxserver.engine.run.storage import StorageCheck
from bloxserver.errors import LimitReached
from bloxserver.models.database import Database
from bloxserver.models.enums import NOT_NEEDED, ExecutionStatus
from bloxserver.observability import metrics
from bloxserver.observability.tracing import NO_SPAN, continue_trace
from bloxserver.organism.load import RunnableOrganism, parse_organism
from bloxserver.organism.model import FailureNotification, UnknownListener
from bloxserver.organism.problems import OrganismError
from bloxserver.raw_json import Value, is_large
from bloxserver.services.notifications import enqueue_budget_notification, enqueue_failure_notification
from bloxserver.services.transitions import cancel_executions
from bloxserver.storable import storable_text

FAILURES = frozenset({ExecutionStatus.ERROR.value, ExecutionStatus.TIMEOUT.value})
MAX_CRASHES = 10
"""Consecutive crashes, without a completed step, after which an execution fails."""
CALL_NOT_NEEDED = "The calling execution does not need the answer: a join has another one"
MAX_CHARACTERS = 64 * 1024 * 1024
"""Maximum size of the inputs and outputs of all steps. An answer to several listeners is stored for each of them."""


class ExecutionTooLarge(Exception):
    """The steps of an execution hold more than `MAX_CHARACTERS`."""


class ExecutionRunner:
    """Runs an execution that this worker has claimed."""

    def __init__(
        self,
        database: Database,
        checkpoints: CheckpointWriter,
        clients: SharedClients,
        execution: ClaimedExecution,
        made_progress: Callable[[], None] = lambda: None,
        *,
        call_results: CallResults | None = None,
    ) -> None:
        """`made_progress` is called when a step of an execution with crashes ends.

        Without `call_results`, the result of a called execution is read only when the execution is resumed.
        """
        self._database = database
        self._checkpoints = checkpoints
        self._clients = clients
        self._execution = execution
        self._made_progress = made_progress
        self._call_results = call_results or CallResults(database)
        self._tokens = Tokens(execution.input_tokens, execution.output_tokens)
        self._saved_tokens = self._tokens
        self._stored = {step.key for step in execution.steps}
        self._on_failure: FailureNotification | None = None
        self._span = NO_SPAN
        self._sizes = {step.key: len(step.output_payload or "") + len(step.state or "") for step in execution.steps}
        """The size of what can still change, by step."""
        self._characters = sum(self._sizes.values()) + sum(len(step.input_payload or "") for step in execution.steps)
        self._storage = StorageCheck(database, execution)
        self._lease = LeaseCheck(database, execution)
        self._notified = {StepWarning(**warning) for step in execution.steps for warning in step.warnings or ()}

    async def run(self) -> None:
        """Run the execution until it ends or suspends. Raises `LeaseLost`."""
        execution = self._execution
        attributes = {
            "bloxserver.execution.id": str(execution.id),
            "bloxserver.flow.id": str(execution.flow_id),
            "bloxserver.trigger": execution.trigger_type.value,
        }
        with continue_trace("execution", execution.trace_parent, attributes, "CONSUMER") as self._span:
            await self._run()

    async def _run(self) -> None:
        with closing(self._clients.memory.of_execution(self._execution.user_id, self._execution.plan)) as memory:
            try:
                await self._run_within(memory)
            except MemoryLimitReached as error:
                await self.end(ExecutionStatus.ERROR, str(error))

    async def _run_within(self, memory: MemoryBudget) -> None:
        execution = self._execution
        await self._lease.require()
        if execution.crash_count > MAX_CRASHES:
            # The definition is not read, since reading it may cause the crashes.
            await self._give_up()
            return
        for text in (execution.input_payload, *(step.output_payload for step in execution.steps)):
            memory.reserve(len(text or ""))
        try:
            organism = await parse_organism(execution.organism_yaml, execution.user_id)
            self._on_failure = organism.on_failure
            entry = Message(organism.entry(execution.target).name, await self._payload())
        except (OrganismError, UnknownListener, BlockError) as error:
            await self.end(ExecutionStatus.ERROR, str(error))
            return
        if execution.crash_count == MAX_CRASHES:
            await self._give_up()
            return
        await self._pump(organism, entry, memory)

    async def _payload(self) -> Value:
        """The payload of the entry."""
        text = self._execution.input_payload
        if text is None or not is_large(text):
            return payload_of(text)
        execution = self._execution
        return await read_large_input(IsolatedTasks(execution.user_id, execution.plan, execution.cpu), text)

    async def _give_up(self) -> None:
        number = self._execution.crash_count
        await self.end(ExecutionStatus.ERROR, f"given up: {number} workers in a row crashed while they ran it")
        metrics.EXECUTIONS_ABANDONED.inc()

    async def _pump(self, organism: RunnableOrganism, entry: Message, memory: MemoryBudget) -> None:
        execution = self._execution
        saved = [step_of_row(step) for step in execution.steps if organism.has(step.listener)]
        context = ClaimedExecutionContext(
            self._database,
            self._clients,
            execution,
            entry.payload,
            memory,
            organism.execution,
            lease=self._lease,
            waits=organism.waits,
        )
        sequence = max((step.sequence for step in execution.steps), default=0)
        pump = Pump(
            organism,
            saved,
            context,
            self._save,
            execution.called,
            sequence=sequence,
            on_call=self._call_results.wake,
        )
        if execution.is_new:
            metrics.START_SECONDS.observe(max(0.0, (now() - execution.started_at).total_seconds()))
        seconds = organism.execution.timeout_seconds
        try:
            async with asyncio.timeout(max(0.0, seconds - execution.active_ms / 1000)) as limit:
                with self._call_results.passed_to(pump, execution.id):
                    await pump.run(entry)
        except ExecutionTooLarge:
            error = f"the inputs and outputs of its steps are larger than {MAX_CHARACTERS // 1024**2} MiB"
            await self.end(ExecutionStatus.ERROR, error)
        except LimitReached as full:
            await self.end(ExecutionStatus.ERROR, full.message)
        except TimeoutError:
            if not limit.expired():
                raise
            running = f"; running: {', '.join(pump.unfinished)}" if pump.unfinished else ""
            error = f"not finished within {seconds:g} seconds (execution.timeout_seconds){running}"
            await self.end(ExecutionStatus.TIMEOUT, error)

    async def end(self, status: ExecutionStatus, error: str) -> None:
        """End the execution with an error."""

        async def write(session: AsyncSession) -> None:
            await self._fail(session, status, error)
            await self._record_usage(session)

        await retry_transaction(self._database, write)
        self._note_status(status.value)

    async def _save(self, change: Change) -> None:
        self._tokens = self._tokens.plus(change.used)
        before = self._characters
        rows = self._rows(change)
        await self._storage.before_saving(self._characters - before)
        warnings = {warning for step in change.steps for warning in step.warnings} - self._notified
        began_at = time.monotonic()
        unneeded = [step.called_id for step in change.steps if step.error_code == NOT_NEEDED and step.called_id]
        match change.outcome:
            case _ if unneeded:
                await self._save_alone(change, rows, unneeded=unneeded)
            case _ if self._on_failure is not None and any(warning.code in BUDGET_WARNINGS for warning in warnings):
                await self._save_alone(change, rows, warnings)
                self._notified |= warnings
            case None if self._tokens == self._saved_tokens:
                await self._checkpoints.save(Checkpoint(self._execution, rows))
            case Finished(output, is_filtered, is_stopped=False) if (
                self._tokens == self._saved_tokens and self._execution.parent_id is None
            ):
                await self._checkpoints.save(Checkpoint(self._execution, rows, text_of_output(output), is_filtered))
            case _:
                await self._save_alone(change, rows)
        self._lease.confirm(began_at)
        self._stored |= {step.message.key for step in change.steps}
        if Checkpoint(self._execution, rows).made_progress:
            self._made_progress()
        match change.outcome:
            case None:
                # What follows the save must not start if its answer was late.
                await self._lease.require()
            case Finished():
                self._note_status(ExecutionStatus.SUCCESS.value)
            case Failed():
                self._note_status(ExecutionStatus.ERROR.value)
            case Suspended():
                self._note_status("suspended")

    def _note_status(self, status: str) -> None:
        """Write the status to the span of this run."""
        self._span.set_attributes({"bloxserver.execution.status": status})
        if status in FAILURES:
            self._span.fail(status)

    def _rows(self, change: Change) -> list[dict[str, Any]]:
        texts = JsonTextCache()
        rows: list[dict[str, Any]] = []
        for step in change.steps:
            row = step_row(step, self._execution.id, texts, known=step.message.key in self._stored)
            size = len(row["output_payload"] or "") + len(row["state"] or "")
            # The input is null if it was saved before.
            self._characters += len(row["input_payload"] or "") + size - self._sizes.get(step.message.key, 0)
            self._sizes[step.message.key] = size
            if self._characters > MAX_CHARACTERS:
                raise ExecutionTooLarge
            rows.append(row)
        return rows

    async def _save_alone(
        self,
        change: Change,
        rows: list[dict[str, Any]],
        warnings: Collection[StepWarning] = (),
        unneeded: Sequence[UUID] = (),
    ) -> None:
        """Save in a transaction of its own. `unneeded` are called executions that are cancelled."""

        async def write(session: AsyncSession) -> None:
            # First: it checks and locks the lease.
            await self._write_outcome(session, change.outcome)
            await save_steps(session, rows)
            if change.outcome is None and Checkpoint(self._execution, rows).made_progress:
                await reset_crash_count(session, [self._execution.id])
            await self._record_usage(session)
            if unneeded:
                await cancel_executions(session, unneeded, CALL_NOT_NEEDED)
            for warning in warnings:
                await self._notify(session, warning)

        await retry_transaction(self._database, write)
        self._saved_tokens = self._tokens
        metrics.CHECKPOINT_BATCH_SIZE.observe(1)

    async def _record_usage(self, session: AsyncSession) -> None:
        # All unsaved tokens, not those of this change alone: an earlier save may have been cancelled.
        if self._tokens != self._saved_tokens:
            await leases.record_usage(session, self._execution, self._tokens)

    async def _notify(self, session: AsyncSession, warning: StepWarning) -> None:
        """Enqueue notifications of a warning about a budget: once on a day, or once for the execution."""
        if self._on_failure is not None and warning.code in BUDGET_WARNINGS:
            is_of_execution = warning.code == EXECUTION_BUDGET_WARNING
            subject = f"{warning.code} {self._execution.id if is_of_execution else f'{now():%Y-%m-%d}'}"
            flow_id = self._execution.flow_id
            await enqueue_budget_notification(session, flow_id, subject, warning.message, self._on_failure)

    async def _write_outcome(self, session: AsyncSession, outcome: Outcome | None) -> None:
        execution = self._execution
        match outcome:
            case None:
                await leases.lock_lease(session, execution.lease_key)
            case Finished(output, is_filtered, is_stopped):
                await leases.end_execution(
                    session,
                    execution,
                    ExecutionStatus.SUCCESS,
                    output=text_of_output(output),
                    is_stopped=is_stopped,
                    is_filtered=is_filtered,
                )
            case Failed(error):
                await self._fail(session, ExecutionStatus.ERROR, error)
            case Suspended(until, called, awaited):
                await leases.suspend(session, execution, until, called, awaited)

    async def _fail(self, session: AsyncSession, status: ExecutionStatus, error: str) -> None:
        await leases.end_execution(session, self._execution, status, error=storable_text(error))
        if self._on_failure is not None:
            await enqueue_failure_notification(session, self._execution.id, self._on_failure)
