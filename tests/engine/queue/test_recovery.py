"""Recovery of executions whose worker lost its heartbeat, and which recoveries count as crashes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.testing import capture_logs

from bloxserver.clock import now
from bloxserver.engine.engine import Engine
from bloxserver.engine.queue.claims import claim_executions
from bloxserver.engine.queue.recovery import (
    BATCH,
    reclaim_all,
    reclaim_expired,
    recover_all,
    refund_crashes,
)
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.worker import Worker
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, WorkerRecord
from bloxserver.settings import Settings
from tests.engine.queue.test_heartbeat import pulses
from tests.engine.queue_claims import PLENTY, claim, take
from tests.engine.running_engine import running_engine
from tests.factories import create_execution, create_flow, create_user
from tests.listening import listening, never_answer

TIMEOUT = timedelta(seconds=20)
ORGANISM = """\
organism: {name: slow}
listeners:
  - {name: a, description: d, handler: http.request, config: {url: 'http://127.0.0.1:%s/'}, timeout_seconds: 600}
"""


async def accepted(database: Database, organism: str | None = None, **values: Any) -> ExecutionRecord:
    async with database.sessions() as session:
        user = await create_user(session)
        flow = await create_flow(session, user, **({"organism_yaml": organism} if organism else {}))
        return await create_execution(session, flow, **values)


async def stored(database: Database, execution_id: UUID) -> ExecutionRecord:
    async with database.sessions() as session:
        return await session.get_one(ExecutionRecord, execution_id)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await holds():  # noqa: ASYNC110  # nothing notifies
            await asyncio.sleep(0.02)


class TestClaims:
    @pytest.mark.parametrize("age", [None, TIMEOUT + timedelta(seconds=5)], ids=["no row", "expired"])
    async def test_a_worker_without_a_fresh_heartbeat_claims_nothing(
        self, live_database: Database, age: timedelta | None
    ) -> None:
        if live_database.engine.dialect.name == "sqlite":
            pytest.skip("SQLite has one process")
        execution = await accepted(live_database)
        async with live_database.transaction() as session:
            session.add(WorkerRecord(worker_id="w-fresh", last_heartbeat_at=now() - TIMEOUT + timedelta(seconds=10)))
            if age is not None:
                session.add(WorkerRecord(worker_id="w-cut-off", last_heartbeat_at=now() - age))
        claimed = {}
        for worker_id in ("w-cut-off", "w-fresh"):
            async with live_database.transaction() as session:
                claimed[worker_id] = [
                    row.id
                    for row in await claim_executions(
                        session, worker_id, uuid4(), PLENTY, PLENTY, heartbeat_timeout=TIMEOUT
                    )
                ]
        assert claimed == {"w-cut-off": [], "w-fresh": [execution.id]}

    async def test_engine_without_a_heartbeat_claims_nothing_and_counts_no_crash(
        self, live_database: Database, live_settings: Settings
    ) -> None:
        """Only the heartbeat process is stopped: the worker, its event loop and its other connections continue."""
        if live_settings.uses_sqlite:
            pytest.skip("SQLite has one process")
        settings = live_settings.model_copy(
            update={
                "heartbeat_interval_seconds": 0.2,
                "heartbeat_timeout_seconds": 60.0,
                "poll_interval_seconds": 0.1,
                "worker_concurrency": 1,
            }
        )
        async with (
            listening(never_answer) as port,
            engine_with_heartbeat_process(settings, live_database) as (cut_off, process),
        ):
            first = await accepted(live_database, ORGANISM % port)
            await eventually(lambda: is_claimed_by(live_database, first.id, cut_off))
            with capture_logs() as logs:
                async with running_engine(settings, live_database) as healthy:
                    with stopped(process):

                        async def is_recovered() -> bool:
                            await expire(live_database, cut_off, settings.heartbeat_timeout_seconds)
                            return await is_claimed_by(live_database, first.id, healthy)

                        await eventually(is_recovered)
                        await eventually(lambda: has_crashes(live_database, first.id, 0))
                        # The healthy worker has no free slot, and the other one has: its claims find nothing.
                        second = await accepted(live_database, ORGANISM % port)
                        for _ in range(3):
                            await cut_off._claimer._claim_due()
                            assert (await stored(live_database, second.id)).lease is None
                        assert cut_off.problem is not None
                    await eventually(lambda: is_claimed_by(live_database, second.id, cut_off))
        recovered = [line for line in logs if line["event"] == "execution recovered"]
        assert [(line["execution_id"], line["worker"], line["recovered_by"]) for line in recovered] == [
            (str(first.id), cut_off.worker_id, healthy.worker_id)
        ]
        paused = [line["event"] for line in logs if line["event"].startswith("claiming ")]
        assert paused == [
            "claiming paused: the heartbeat has expired",
            "claiming resumed: the heartbeat is stored again",
        ]


@asynccontextmanager
async def engine_with_heartbeat_process(settings: Settings, database: Database) -> AsyncIterator[tuple[Engine, int]]:
    """An engine, and the id of its heartbeat process once that sends heartbeats."""
    async with running_engine(settings, database) as engine:
        started = engine._heartbeat._beat_at

        async def is_beating() -> bool:
            return len(pulses()) == 1 and engine._heartbeat._beat_at != started

        await eventually(is_beating)
        (process,) = pulses()
        yield engine, process


@contextmanager
def stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


async def expire(database: Database, engine: Engine, timeout_seconds: float) -> None:
    """Let the last heartbeat of an engine be older than the timeout, without the wait."""
    engine._heartbeat._beat_at = time.monotonic() - timeout_seconds
    async with database.transaction() as session:
        await session.execute(
            sa.update(WorkerRecord)
            .where(WorkerRecord.worker_id == engine.worker_id)
            .values(last_heartbeat_at=now() - timedelta(seconds=timeout_seconds + 1))
        )


async def is_claimed_by(database: Database, execution_id: UUID, engine: Engine) -> bool:
    return (await stored(database, execution_id)).worker_id == engine.worker_id


async def has_crashes(database: Database, execution_id: UUID, number: int) -> bool:
    return (await stored(database, execution_id)).crash_count == number


class TestCrashCount:
    async def test_refund_reverts_the_last_recovery_once(self, session: AsyncSession) -> None:
        flow = await create_flow(session, await create_user(session))
        execution = await create_execution(session, flow, crash_count=2)
        counts: list[int] = []
        leases: list[UUID] = []
        for _ in range(2):
            (claimed,) = await claim(session)
            leases.append(claimed.lease)
            await reclaim_all(session)
            await refund_crashes(session, {(execution.id, uuid4())})
            await session.refresh(execution)
            counts.append(execution.crash_count)
        for lease in (leases[0], leases[1], leases[1]):
            await refund_crashes(session, {(execution.id, lease)})
            await session.refresh(execution)
            counts.append(execution.crash_count)
        assert counts == [3, 4, 4, 3, 3], "the first lease is not the last recovery's, the second is refunded once"

    async def test_a_refund_never_counts_below_zero(self, session: AsyncSession) -> None:
        flow = await create_flow(session, await create_user(session))
        execution = await create_execution(session, flow)
        (claimed,) = await claim(session)
        await reclaim_all(session)
        await session.execute(sa.update(ExecutionRecord).values(crash_count=0))
        await refund_crashes(session, {claimed.lease_key})
        await session.refresh(execution)
        assert execution.crash_count == 0

    @pytest.mark.parametrize("way", ["lease check", "checkpoint", "claimed again"])
    async def test_live_worker_refunds_the_crash(
        self, live_database: Database, clients: SharedClients, way: str
    ) -> None:
        worker = Worker(live_database, clients)
        async with listening(never_answer) as port:
            execution = await accepted(live_database, ORGANISM % port)
            claimed = await take(live_database, execution)
            if way == "checkpoint":
                await reclaim(live_database)
                await worker.run(claimed)
            else:
                worker.begin(claimed, lambda: None)
                await reclaim(live_database)
                if way == "claimed again":
                    worker.begin(await take(live_database, execution), lambda: None)
            assert (await stored(live_database, execution.id)).crash_count == 1
            await worker._check_leases()
            assert (await stored(live_database, execution.id)).crash_count == 0
            await worker.drain(0)

    @pytest.mark.parametrize(("loop_timeout", "crashes"), [(0.8, 1), (0, 0)])
    async def test_a_blocked_event_loop_is_a_crash_unless_that_is_disabled(
        self, live_database: Database, clients: SharedClients, loop_timeout: float, crashes: int
    ) -> None:
        """An execution that blocks every worker that runs it has to fail eventually."""
        worker = Worker(live_database, clients, event_loop_timeout=loop_timeout)
        requested = asyncio.Event()

        async def note_and_wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requested.set()
            await never_answer(reader, writer)

        async with listening(note_and_wait) as port:
            execution = await accepted(live_database, ORGANISM % port)
            worker.begin(await take(live_database, execution), lambda: None)
            async with asyncio.timeout(30):
                await requested.wait()
            watching = asyncio.create_task(worker.watch())
            await asyncio.sleep(0)
            await reclaim(live_database)
            time.sleep(1.5)  # noqa: ASYNC251  # as a block does that computes on the event loop

            async def is_idle() -> bool:
                return not worker.lease_keys and not worker._lost

            await eventually(is_idle)
            watching.cancel()
            await asyncio.wait([watching])
        assert (await stored(live_database, execution.id)).crash_count == crashes

    async def test_a_cancelled_execution_is_no_crash_and_no_refund(
        self, live_database: Database, clients: SharedClients
    ) -> None:
        worker = Worker(live_database, clients)
        async with listening(never_answer) as port:
            execution = await accepted(live_database, ORGANISM % port, crash_count=2)
            worker.begin(await take(live_database, execution), lambda: None)
            async with live_database.transaction() as session:
                await session.execute(sa.update(ExecutionRecord).values(lease=None))
            await worker._check_leases()
            await worker.drain(0)
        assert (await stored(live_database, execution.id)).crash_count == 2


async def reclaim(database: Database) -> None:
    async with database.transaction() as session:
        assert len(await reclaim_all(session)) == 1


async def test_thousands_of_executions_are_recovered_in_batches(live_database: Database) -> None:
    number = 2 * BATCH + 1
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        rows = [
            {"id": uuid4(), "flow_id": flow.id, "trigger_type": "manual", "lease": uuid4(), "worker_id": "w-dead"}
            for _ in range(number)
        ]
        await session.execute(sa.insert(ExecutionRecord), rows)
        await session.commit()
    with capture_logs() as logs:
        assert await recover_all(live_database, "w-new") == number
    assert {line["execution_id"] for line in logs} == {str(row["id"]) for row in rows}
    async with live_database.transaction() as session:
        assert await reclaim_expired(session, TIMEOUT) == []
        left = await session.execute(
            sa.select(ExecutionRecord.crash_count, ExecutionRecord.worker_id, sa.func.count()).group_by(
                ExecutionRecord.crash_count, ExecutionRecord.worker_id
            )
        )
        assert [tuple(row) for row in left] == [(1, None, number)]
