"""Metrics of a running engine."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from datetime import timedelta

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.background.retention import Retention
from bloxserver.engine.background.schedule_firing import fire_schedule
from bloxserver.engine.background.schedules import fire_due_schedules
from bloxserver.engine.engine import Engine
from bloxserver.engine.queue.heartbeat import Heartbeat
from bloxserver.engine.queue.recovery import Recovery
from bloxserver.models.database import Database
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    TriggerType,
    WorkerRecord,
)
from bloxserver.queries.triggers import read_due_schedules
from bloxserver.settings import Settings
from tests.engine.queue_claims import take
from tests.engine.running_engine import ENDED, accept, end_delay, eventually, run, running_engine, started_flow
from tests.factories import create_execution, create_flow, create_trigger, create_user
from tests.metric_increase import measure_increase

CHAIN = """
organism: {name: chain}
listeners:
  - {name: first, description: d, handler: echo, peers: [second]}
  - {name: second, description: d, handler: calculate, config: {expression: "1 + 1"}}
"""
WAITING = """
organism: {name: waiting}
listeners:
  - {name: wait, description: d, handler: delay, config: {seconds: 3600}}
"""
FAILING = """
organism: {name: failing}
listeners:
  - {name: parse, description: d, handler: json.parse}
"""


async def test_successful_execution_is_counted_and_timed(live_client: httpx.AsyncClient, engine: Engine) -> None:
    path = await started_flow(live_client, CHAIN)
    counts = {
        "accepted": ("bloxserver_executions_accepted_total", {"trigger": "manual"}),
        "ended": ("bloxserver_executions_ended_total", {"status": "success", "trigger": "manual"}),
        "echo": ("bloxserver_steps_total", {"handler": "echo", "outcome": "success"}),
        "calculate": ("bloxserver_step_duration_seconds_count", {"handler": "calculate"}),
        "dispatch": ("bloxserver_queue_wait_seconds_count", {}),
        "start": ("bloxserver_start_latency_seconds_count", {}),
        "claims": ("bloxserver_claim_batch_size_sum", {}),
    }
    with ExitStack() as stack:
        grown = {key: stack.enter_context(measure_increase(name, **labels)) for key, (name, labels) in counts.items()}
        checkpoints = stack.enter_context(measure_increase("bloxserver_checkpoint_batch_size_sum"))
        start = stack.enter_context(measure_increase("bloxserver_start_latency_seconds_sum"))
        assert (await run(live_client, path, {"a": 1}))["status"] == "success"
    assert {key: one.number for key, one in grown.items()} == dict.fromkeys(counts, 1)
    assert checkpoints.number >= 2
    assert 0 < start.number < 5


async def test_failed_and_cancelled_executions_are_counted(live_client: httpx.AsyncClient, engine: Engine) -> None:
    path = await started_flow(live_client, FAILING)
    ended = "bloxserver_executions_ended_total"
    with (
        measure_increase(ended, status="error", trigger="manual") as failed,
        measure_increase("bloxserver_steps_total", handler="json.parse", outcome="error") as steps,
    ):
        assert (await run(live_client, path, {"not": "text"}))["status"] == "error"
    assert (failed.number, steps.number) == (1, 1)
    waiting = await started_flow(live_client, WAITING, name="Another")
    execution = await accept(live_client, waiting)
    with measure_increase(ended, status="cancelled", trigger="manual") as cancelled:
        for _ in range(2):
            assert (await live_client.post(f"{execution}/cancel")).status_code == 200
    assert cancelled.number == 1


async def test_resumed_execution_is_counted_as_started_once(
    live_client: httpx.AsyncClient, live_database: Database, engine: Engine
) -> None:
    path = await started_flow(live_client, WAITING)
    with (
        measure_increase("bloxserver_queue_wait_seconds_count") as dispatched,
        measure_increase("bloxserver_queue_wait_seconds_sum") as seconds,
        measure_increase("bloxserver_start_latency_seconds_count") as started,
        measure_increase("bloxserver_steps_total", handler="delay", outcome="waiting") as waited,
    ):
        execution = await accept(live_client, path)
        await end_delay(live_database, execution)
        assert (await eventually(live_client, execution, ENDED))["status"] == "success"
    assert (dispatched.number, started.number, waited.number) == (2, 1, 1)
    assert seconds.number < 2, "suspended is not late"


async def test_rolled_back_transactions_are_not_counted(live_database: Database) -> None:
    with measure_increase("bloxserver_executions_accepted_total", trigger="schedule") as accepted:
        async with live_database.transaction() as session:
            flow = await create_flow(session, await create_user(session))
            await create_trigger(
                session,
                flow,
                type=TriggerType.SCHEDULE,
                config={"cron": "* * * * *"},
                next_fire_at=now() - timedelta(seconds=30),
            )
        with pytest.raises(RuntimeError):
            await _fire_and_fail(live_database)
    assert accepted.number == 0


async def _fire_and_fail(database: Database) -> None:
    async with database.transaction() as session:
        (due,) = await read_due_schedules(session, now(), 10)
        assert await fire_schedule(session, due, now())
        raise RuntimeError


async def test_schedules_are_counted_by_outcome(live_database: Database) -> None:
    moment = now()
    async with live_database.transaction() as session:
        flow = await create_flow(session, await create_user(session))
        for late, config in (
            (timedelta(seconds=30), {"cron": "* * * * *"}),
            (timedelta(days=3), {"cron": "0 0 1 1 *", "catch_up": "none"}),
            (timedelta(seconds=30), {"cron": "banana"}),
        ):
            await create_trigger(session, flow, type=TriggerType.SCHEDULE, config=config, next_fire_at=moment - late)
    name = "bloxserver_schedule_firings_total"
    with ExitStack() as stack:
        grown = {
            outcome: stack.enter_context(measure_increase(name, outcome=outcome))
            for outcome in ("fired", "missed", "invalid", "refused")
        }
        lateness = stack.enter_context(measure_increase("bloxserver_schedule_lateness_seconds_sum"))
        await fire_due_schedules(live_database)
    assert {key: one.number for key, one in grown.items()} == {"fired": 1, "missed": 1, "invalid": 1, "refused": 0}
    assert 30 <= lateness.number < 60


async def test_recovered_and_abandoned_executions_are_counted(
    live_client: httpx.AsyncClient, live_database: Database, live_settings: Settings
) -> None:
    async with live_database.transaction() as session:
        user = await create_user(session)
        flow = await create_flow(session, user, organism_yaml=CHAIN)
        execution = await create_execution(session, flow)
    await take(live_database, execution, "w-dead")
    living = Heartbeat(live_settings, live_database, "w-living")
    await living.start()
    with measure_increase("bloxserver_executions_recovered_total") as taken:
        assert await Recovery(live_settings, live_database, living, "w-living").recover() == 1
    assert taken.number == 1
    await living.end()
    async with live_database.transaction() as session:
        await session.execute(sa.update(ExecutionRecord).values(crash_count=11))
    ended = {"status": "error", "trigger": "manual"}
    with (
        measure_increase("bloxserver_executions_abandoned_total") as given_up,
        measure_increase("bloxserver_executions_ended_total", **ended) as failed,
        measure_increase("bloxserver_queue_wait_seconds_count") as dispatched,
    ):
        async with running_engine(live_settings, live_database):
            await _ended(live_database)
    assert (given_up.number, failed.number, dispatched.number) == (1, 1, 0)
    async with live_database.transaction() as session:
        assert (await session.scalars(sa.select(WorkerRecord))).all() == []


async def _ended(database: Database) -> None:
    async with asyncio.timeout(20):
        while True:
            async with database.transaction(read_only=True) as session:
                if await session.scalar(sa.select(ExecutionRecord.status)) is not ExecutionStatus.RUNNING:
                    return
            await asyncio.sleep(0.02)


async def test_rows_deleted_by_retention_are_counted(live_database: Database, live_settings: Settings) -> None:
    async with live_database.transaction() as session:
        flow = await create_flow(session, await create_user(session))
        old = now() - timedelta(days=90)
        for _ in range(3):
            await create_execution(session, flow, status=ExecutionStatus.SUCCESS, started_at=old, completed_at=old)
    settings = live_settings.model_copy(update={"execution_retention_days": 30})
    with measure_increase("bloxserver_retention_deleted_total", kind="executions") as deleted:
        await Retention(settings, live_database, min_interval_seconds=0).prune()
    assert deleted.number == 3
