"""Heartbeats of workers, and the recovery of the executions of expired workers."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from bloxserver import __version__
from bloxserver.clock import now
from bloxserver.engine.engine import Engine
from bloxserver.engine.queue import heartbeat_process
from bloxserver.engine.queue.heartbeat import Heartbeat
from bloxserver.engine.queue.recovery import Recovery
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, TriggerType, WorkerRecord
from bloxserver.services.executions import Input, accept
from bloxserver.settings import Settings
from tests.engine.queue_claims import take
from tests.factories import create_execution, create_flow, create_user


@pytest.fixture
def quick(live_settings: Settings) -> Settings:
    return live_settings.model_copy(
        update={
            "heartbeat_interval_seconds": 0.05,
            "heartbeat_timeout_seconds": 1.0,
            "event_loop_timeout": 60.0,
        }
    )


async def last_heartbeat_at(database: Database) -> datetime | None:
    async with database.sessions() as session:
        return await session.scalar(sa.select(WorkerRecord.last_heartbeat_at))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)


async def later_beat(database: Database, before: datetime | None) -> datetime | None:
    async with asyncio.timeout(20):
        while (beat := await last_heartbeat_at(database)) == before:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)
    return beat


async def test_worker_row_exists_from_start_to_end(live_database: Database, quick: Settings) -> None:
    heartbeat = Heartbeat(quick, live_database, "w-1")
    await heartbeat.start()
    async with live_database.sessions() as session:
        worker = (await session.scalars(sa.select(WorkerRecord))).one()
    assert (worker.worker_id, worker.version) == ("w-1", __version__)
    assert heartbeat.is_fresh
    await later_beat(live_database, worker.last_heartbeat_at)
    await heartbeat.end()
    assert await last_heartbeat_at(live_database) is None


def sleep_holding_the_interpreter(seconds: int) -> None:
    """Block all other threads of this process, as a C extension that computes does."""
    ctypes.PyDLL(None).sleep(seconds)


@pytest.mark.parametrize("block", [time.sleep, sleep_holding_the_interpreter])
async def test_blocked_worker_keeps_its_heartbeat(
    live_database: Database, quick: Settings, block: Callable[[int], None]
) -> None:
    if quick.uses_sqlite:
        pytest.skip("SQLite has one process")
    heartbeat = Heartbeat(quick, live_database, "w-1")
    await heartbeat.start()
    await later_beat(live_database, await last_heartbeat_at(live_database))
    began = now()
    block(2 * round(quick.heartbeat_timeout_seconds))
    last = await last_heartbeat_at(live_database)
    await heartbeat.end()
    assert last is not None
    assert last > began + timedelta(seconds=quick.heartbeat_timeout_seconds)


async def test_killed_heartbeat_process_is_restarted(live_database: Database, quick: Settings) -> None:
    if quick.uses_sqlite or sys.platform != "linux":
        pytest.skip("SQLite has one process, or the system has no /proc")
    heartbeat = Heartbeat(quick, live_database, "w-1", retry_seconds=0.05)
    await heartbeat.start()
    await later_beat(live_database, await last_heartbeat_at(live_database))
    (process_id,) = pulses()
    os.kill(process_id, signal.SIGTERM)  # the heartbeat continues: the worker has to drain first
    await later_beat(live_database, await last_heartbeat_at(live_database))
    assert pulses() == {process_id}
    os.kill(process_id, signal.SIGKILL)
    await until(lambda: process_id not in pulses())
    await later_beat(live_database, await last_heartbeat_at(live_database))
    (other,) = pulses()
    await heartbeat.end()
    assert pulses() == set()
    assert other != process_id


def pulses() -> set[int]:
    """The heartbeat processes that this process has started."""
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process may have ended
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and heartbeat_process.__name__ in (process / "cmdline").read_text():
                found.add(int(process.name))
    return found


async def test_heartbeat_process_accepts_a_pooler_url(live_database: Database, quick: Settings) -> None:
    if quick.uses_sqlite:
        pytest.skip("SQLite has one process")
    url = sa.make_url(quick.database_url).update_query_dict({"prepared_statement_cache_size": "0"})
    pooled = Database(quick.model_copy(update={"database_url": url.render_as_string(hide_password=False)}))
    heartbeat = Heartbeat(quick, pooled, "w-1")
    await heartbeat.start()
    await later_beat(live_database, await last_heartbeat_at(live_database))
    await heartbeat.end()
    await pooled.dispose()


async def test_worker_with_a_blocked_event_loop_expires(live_database: Database, quick: Settings) -> None:
    if quick.uses_sqlite:
        pytest.skip("SQLite has one process")
    settings = quick.model_copy(update={"event_loop_timeout": 0.5})
    heartbeat = Heartbeat(settings, live_database, "w-1")
    await heartbeat.start()
    await later_beat(live_database, await last_heartbeat_at(live_database))
    began = now()
    time.sleep(1.5)  # noqa: ASYNC251  # as a block does that never ends
    last = await last_heartbeat_at(live_database)
    assert last is not None
    assert last < began + timedelta(seconds=1.4)
    await later_beat(live_database, last)
    await heartbeat.end()


async def test_executions_of_an_expired_worker_are_recovered(live_database: Database, quick: Settings) -> None:
    async with live_database.sessions() as session:
        execution = await create_execution(session, await create_flow(session, await create_user(session)))
    settings = quick.model_copy(update={"heartbeat_timeout_seconds": 60.0})
    living, dead = (Heartbeat(settings, live_database, name) for name in ("w-living", "w-dead"))
    await living.start()
    await dead.start()
    await take(live_database, execution, "w-dead")
    recover = Recovery(settings, live_database, living, "w-living")
    assert await recover.recover() == 0
    await dead.end()
    await until(lambda: living.can_declare_dead)
    assert await recover.recover() == 1
    await take(live_database, execution, "w-living")
    assert await recover.recover() == 0
    async with live_database.sessions() as session:
        assert (await session.get_one(ExecutionRecord, execution.id)).crash_count == 1
    await living.end()


async def test_no_worker_is_declared_dead_right_after_an_outage(live_database: Database, quick: Settings) -> None:
    """After a database outage, the first worker that returns must not recover executions of live workers."""
    heartbeat = Heartbeat(quick, live_database, "w-1")
    await heartbeat.start()
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE workers RENAME TO elsewhere"))
    await until(lambda: not heartbeat.can_declare_dead)
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE elsewhere RENAME TO workers"))
    back = time.monotonic()
    await until(lambda: heartbeat.is_fresh)
    await until(lambda: heartbeat.can_declare_dead)
    assert time.monotonic() - back >= quick.heartbeat_timeout_seconds
    await heartbeat.end()


@pytest.mark.parametrize(("level", "is_logged"), [("WARNING", True), ("ERROR", False)])
async def test_failed_heartbeats_of_the_process_are_logged(
    live_database: Database, quick: Settings, capfd: pytest.CaptureFixture[str], level: str, is_logged: bool
) -> None:
    if quick.uses_sqlite:
        pytest.skip("SQLite has one process")
    heartbeat = Heartbeat(quick.model_copy(update={"log_level": level}), live_database, "w-1")
    await heartbeat.start()
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE workers RENAME TO elsewhere"))
    await until(lambda: not heartbeat.is_fresh)
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE elsewhere RENAME TO workers"))
    await heartbeat.end()
    lines = capfd.readouterr().err.splitlines()
    assert any("heartbeat failed" in line and "error=UndefinedTableError" in line for line in lines) is is_logged


async def test_new_work_wakes_another_process_at_once(live_database: Database, live_settings: Settings) -> None:
    """By polling alone, the process would find the work after a minute."""
    if live_settings.uses_sqlite:
        pytest.skip("SQLite is for one process")
    patient = live_settings.model_copy(update={"poll_interval_seconds": 60.0})
    elsewhere = Database(patient)
    worker, api = Engine(patient, elsewhere, run_worker=True), Engine(patient, live_database, run_worker=False)
    await worker.start()
    await api.start()
    try:
        await listening(live_database, 2)
        async with live_database.sessions() as session:
            flow = await create_flow(session, await create_user(session))
        async with live_database.transaction() as session:
            accepted = await accept(session, flow_id=flow.id, given=Input("Ada"), trigger_type=TriggerType.MANUAL)
        async with asyncio.timeout(10):
            while True:
                async with live_database.sessions() as session:
                    row = await session.get_one(ExecutionRecord, accepted.id)
                if row.completed_at is not None:
                    break
                await asyncio.sleep(0.02)
        assert row.output_payload == '{"message": "Hello, Ada!"}'
    finally:
        await api.stop()
        await worker.stop()
        await elsewhere.dispose()


async def listening(database: Database, number: int) -> None:
    """The number of connections that listen."""
    listens = sa.text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE query LIKE '%LISTEN%' AND pid <> pg_backend_pid() AND datname = current_database()"
    )
    async with asyncio.timeout(20):
        while True:
            async with database.transaction(read_only=True) as session:
                if (await session.scalar(listens) or 0) >= number:
                    return
            await asyncio.sleep(0.02)


async def test_recovery_continues_without_the_privilege_to_end_sessions(
    live_database: Database, live_settings: Settings
) -> None:
    if live_settings.uses_sqlite:
        pytest.skip("SQLite has one process")
    living = Heartbeat(live_settings, live_database, "w-1")
    await living.start()
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        await create_execution(session, flow, lease=uuid4(), worker_id="w-dead")
        # as on servers that restrict this privilege
        await session.execute(sa.text("ALTER FUNCTION pg_catalog.pg_terminate_backend RENAME TO not_for_everybody"))
        await session.commit()
    assert await Recovery(live_settings, live_database, living, "w-living").recover() == 1
    await living.end()
