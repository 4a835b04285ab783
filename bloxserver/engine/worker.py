"""Runs one execution at a time per job: lease, pump, end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from math import isfinite
from typing import Any
from uuid import UUID, uuid4

import structlog
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.database import Database
from bloxserver.api.models.enums import ExecutionStatus
from bloxserver.api.models.tables import ExecutionStepRecord
from bloxserver.api.models.types import now
from bloxserver.blocks.base import BlockContext
from bloxserver.clients.http import GuardedClient
from bloxserver.engine.organisms import parse_organism
from bloxserver.engine.patience import in_transaction
from bloxserver.engine.pump import Failed, Finished, Message, Outcome, Parked, Pump, Step, elapsed_ms
from bloxserver.organism.model import Organism, UnknownListener
from bloxserver.organism.problems import OrganismError
from bloxserver.services import leases
from bloxserver.services.leases import LeaseLost, TakenExecution

log = structlog.stdlib.get_logger("bloxserver.engine")

LEASE_SECONDS = 5
"""How long taking a lease may still take when the worker stops."""

RETRY_SECONDS = 5
"""Pause before an execution is tried again that the database would not let run."""


class Worker:
    """What a process does with the jobs that it gets."""

    def __init__(self, database: Database, http: GuardedClient, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        self._database = database
        self._http = http
        self._running: dict[asyncio.Task[Any], TakenExecution | None] = {}
        self._draining = False

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
            log.info("execution taken by another worker, or gone", execution_id=str(execution_id))
        except Exception as error:
            log.error("execution cannot be run now", execution_id=str(execution_id), exc_info=error)
            return False
        finally:
            self._running.pop(task, None)
        return True

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
        try:
            organism = await parse_organism(execution.organism_yaml)
            entry = Message(organism.entry(execution.target).name, payload_of(execution.input_payload))
        except (OrganismError, UnknownListener) as error:
            await self._save(execution, [], Failed(str(error)))
            return
        try:
            await self._pump(execution, organism, entry)
        except LeaseLost:
            raise
        except Exception as bug:
            # Without an end the execution would be `running` for ever.
            log.error("execution failed unexpectedly", execution_id=str(execution_id), exc_info=bug)
            await self._end(execution, ExecutionStatus.ERROR, error="internal error")

    async def _pump(self, execution: TakenExecution, organism: Organism, entry: Message) -> None:
        async def save(steps: Sequence[Step], outcome: Outcome | None) -> None:
            await self._save(execution, steps, outcome)

        def context_of(message: Message) -> BlockContext:
            return BlockContext(http=self._http, clock=now, idempotency_key=f"{execution.id}:{message.key}")

        seconds = organism.execution.timeout_seconds
        pump = Pump(organism, [_kept(step) for step in execution.steps], context_of, save)
        try:
            async with asyncio.timeout(seconds) as limit:
                await pump.run(entry)
        except TimeoutError:
            if not limit.expired():
                raise
            await self._end(
                execution,
                ExecutionStatus.TIMEOUT,
                error=f"not finished within {seconds:g} seconds (execution.timeout_seconds)",
            )

    async def _save(self, execution: TakenExecution, steps: Sequence[Step], outcome: Outcome | None) -> None:
        rows = [_row(step) for step in steps]

        async def write(session: AsyncSession) -> None:
            await leases.save_steps(session, execution, rows)
            match outcome:
                case Finished(output):
                    await leases.end_execution(session, execution, ExecutionStatus.SUCCESS, output=_json(output))
                case Failed(error):
                    await leases.end_execution(session, execution, ExecutionStatus.ERROR, error=_storable(error))
                case Parked(until):
                    await leases.park(session, execution, until)

        await in_transaction(self._database, write)

    async def _end(self, execution: TakenExecution, status: ExecutionStatus, *, error: str) -> None:
        await in_transaction(
            self._database, lambda session: leases.end_execution(session, execution, status, error=error)
        )


def payload_of(text: str | None) -> JsonValue:
    """The entry's message: the input where it is JSON, else `{"text": input}`; no input is an empty object."""
    if text is None:
        return {}
    try:
        value: JsonValue = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return {"text": text}
    return value


def _finite(number: str) -> float:
    """What JSON can say again: neither NaN nor what is too large for a float."""
    value = float(number)
    if not isfinite(value):
        raise ValueError("not a finite number")
    return value


def _json(value: JsonValue) -> str:
    """JSON text that every database stores: escaped where it holds what is no Unicode."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _storable(text: str) -> str:
    """The text as every database takes it: an error may quote what a user sent."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def _row(step: Step) -> dict[str, Any]:
    return {
        "id": step.id,
        "key": step.message.key,
        "parent_id": step.message.parent_id,
        "listener": step.message.listener,
        "handler": step.handler,
        "status": step.status,
        "input_payload": _json(step.message.payload),
        "output_payload": None if step.error is not None else _json(step.output),
        "error_message": step.error and _storable(step.error),
        "started_at": step.started_at,
        "completed_at": step.completed_at,
        "duration_ms": elapsed_ms(step),
    }


def _kept(record: ExecutionStepRecord) -> Step:
    return Step(
        message=Message(record.listener, json.loads(record.input_payload or "null"), record.parent_id),
        handler=record.handler or "",
        status=record.status,
        started_at=record.started_at,
        completed_at=record.completed_at or record.started_at,
        output=json.loads(record.output_payload or "null"),
        error=record.error_message,
        id=record.id,
    )
