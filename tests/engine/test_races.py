"""Races: late commits, lost answers, and events during a poll or a sweep lose no work and no state."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from bloxserver.blocks.base import BlockContext, Result
from bloxserver.clock import now
from bloxserver.engine.background.sweeper import Sweeper
from bloxserver.engine.engine import Engine
from bloxserver.engine.queue.checkpoints import Checkpoint, CheckpointWriter
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.messages import Change, Message, Step, Tokens
from bloxserver.engine.run.runner import MAX_CRASHES, ExecutionRunner
from bloxserver.engine.run.serialization import JsonTextCache, step_row
from bloxserver.engine.run.worker import Worker
from bloxserver.models.database import Database, WakeReason
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStepRecord,
    FlowStatus,
    StepStatus,
    WorkerRecord,
)
from bloxserver.models.transient_errors import is_transient
from bloxserver.settings import Settings
from tests.engine.pump_runs import block, organism, pump
from tests.engine.queue_claims import claimer_of, ended, take
from tests.factories import create_execution, create_flow, create_user

LONG = 30.0
"""Seconds between sweeps, longer than the timeout of the tests."""


@contextmanager
def before_statements(database: Database, seen: Callable[[str], None]) -> Iterator[None]:
    """Call `seen` with each statement before it is sent, at the point where a slow network would delay it."""
    engines = {database.engine.sync_engine, database.reading_sessions.kw["bind"].sync_engine}

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        seen(statement)

    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


async def accepted(database: Database, **values: Any) -> ExecutionRecord:
    async with database.sessions() as session:
        return await create_execution(session, await create_flow(session, await create_user(session)), **values)


@contextmanager
def running(*loops: Any) -> Iterator[None]:
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def step(message: Message, status: StepStatus, sequence: int) -> Step:
    completed_at = None if status is StepStatus.RUNNING else now()
    return Step(message, "echo", status, now(), completed_at=completed_at, output=1, sequence=sequence)


async def test_late_checkpoint_does_not_overwrite_a_newer_one(live_database: Database) -> None:
    """A run whose save was cancelled continues, and the cancelled save may be committed after the next one."""
    taken = await take(live_database, await accepted(live_database))
    checkpoints, message = CheckpointWriter(live_database), Message("a", 1)
    later, earlier = step(message, StepStatus.SUCCESS, 2), step(message, StepStatus.RUNNING, 1)
    for saved in (later, earlier):
        await checkpoints.save(Checkpoint(taken, [step_row(saved, taken.id, JsonTextCache(), known=False)]))
    async with live_database.sessions() as session:
        left = (await session.scalars(sa.select(ExecutionStepRecord))).one()
    assert (left.status, left.sequence) == (StepStatus.SUCCESS, 2)


async def test_tokens_of_a_cancelled_save_are_counted_by_the_next(
    live_settings: Settings, live_database: Database
) -> None:
    taken = await take(live_database, await accepted(live_database, crash_count=MAX_CRASHES - 1))
    clients = SharedClients.of(live_settings)
    execution = ExecutionRunner(live_database, CheckpointWriter(live_database), clients, taken)
    message = Message("a", 1)
    broken_off = asyncio.create_task(execution._save(Change([step(message, StepStatus.RUNNING, 1)], Tokens(3, 4))))
    await asyncio.sleep(0)
    broken_off.cancel()
    await asyncio.wait([broken_off])
    assert broken_off.cancelled()
    await execution._save(Change([step(message, StepStatus.SUCCESS, 2)]))
    await clients.aclose()
    async with live_database.sessions() as session:
        left = await session.get_one(ExecutionRecord, taken.id)
    assert (left.input_tokens, left.output_tokens) == (3, 4)
    assert left.crash_count == 0, "a step that ends makes up for workers that died, with tokens or without"


async def test_claim_with_a_lost_answer_is_released(live_settings: Settings, live_database: Database) -> None:
    settings = live_settings.model_copy(update={"heartbeat_timeout_seconds": 0.3})
    clients = SharedClients.of(settings)
    worker = Worker(live_database, clients)
    claimer = await claimer_of(settings, live_database, worker, "w-1")
    with running(claimer.run()):
        # The database may still carry out a cancelled commit later.
        execution = await accepted(live_database, lease=uuid4(), worker_id="w-1")
        async with asyncio.timeout(10):
            await ended(live_database, execution)
    await clients.aclose()


async def test_execution_due_during_a_poll_is_claimed(live_settings: Settings, live_database: Database) -> None:
    settings = live_settings.model_copy(update={"poll_interval_seconds": LONG})
    clients = SharedClients.of(settings)
    execution = await accepted(live_database, resume_at=now() + timedelta(seconds=0.5))

    def hold_up(statement: str) -> None:
        if "min((SELECT min(e.resume_at)" not in statement and "WITH RECURSIVE" in statement:
            time.sleep(max(0.0, (execution.resume_at - now()).total_seconds() + 0.1))  # type: ignore[operator]

    claimer = await claimer_of(settings, live_database, Worker(live_database, clients), "w-1")
    with before_statements(live_database, hold_up), running(claimer.run()):
        async with asyncio.timeout(10):
            await ended(live_database, execution)
    await clients.aclose()


async def test_execution_that_ends_during_a_sweep_completes_the_stop(
    live_settings: Settings, live_database: Database
) -> None:
    async with live_database.sessions() as session:
        stopping = await create_flow(
            session, await create_user(session), status=FlowStatus.STOPPING, stop_requested_at=now()
        )
        await create_execution(session, stopping)
    sweeper = Sweeper(live_settings.model_copy(update={"poll_interval_seconds": LONG}), live_database)
    settled = asyncio.Event()
    looks = 0

    def end_meanwhile(statement: str) -> None:
        # The sweep has just skipped the flow, since an execution was running.
        nonlocal looks
        if "next_fire_at <=" in statement:
            looks += 1
            if looks == 1:
                sweeper.wake(frozenset({WakeReason.EXECUTION}))
            else:
                settled.set()

    with before_statements(live_database, end_meanwhile), running(sweeper.run()):
        async with asyncio.timeout(10):
            await settled.wait()


async def test_failing_reconciliation_does_not_block_schedules(
    live_settings: Settings, live_database: Database
) -> None:
    async with live_database.sessions() as session:
        await create_flow(session, await create_user(session), status=FlowStatus.STARTING)
    fired = asyncio.Event()

    def fail(statement: str) -> None:
        if "flows.stop_requested_at, flows.user_id" in statement:
            raise OSError
        if "next_fire_at <=" in statement:
            fired.set()

    with before_statements(live_database, fail), running(Sweeper(live_settings, live_database).run()):
        async with asyncio.timeout(10):
            await fired.wait()


async def test_stop_deletes_the_worker_row_after_database_errors(
    live_settings: Settings, live_database: Database
) -> None:
    engine = Engine(live_settings, live_database, run_worker=True)
    await engine.start()
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE executions RENAME TO elsewhere"))
    await engine.stop()
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]
    async with live_database.sessions() as session:
        assert (await session.scalars(sa.select(WorkerRecord))).all() == []


async def test_block_that_ignores_cancellation_is_abandoned() -> None:
    over, begun = asyncio.Event(), asyncio.Event()

    async def act(payload: JsonValue, context: BlockContext) -> Result:
        begun.set()
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()
        return None

    run = asyncio.create_task(
        pump(organism("name: a, handler: act"), blocks=[block("act", act)], cancel_grace_seconds=0.05)
    )
    await begun.wait()
    run.cancel()
    try:
        assert await asyncio.wait([run], timeout=10) == ({run}, set())
        assert run.cancelled()
    finally:
        over.set()


@pytest.mark.parametrize(("state", "passing"), [(None, True), ("22000", False), ("57P01", True)])
def test_error_text_decides_transience_only_without_an_error_code(state: str | None, passing: bool) -> None:
    class DriverError(Exception):
        sqlstate = state

    error = DriverError("invalid input for query argument $2: 'the connection'")
    assert is_transient(DBAPIError("INSERT", None, error)) is passing
