"""The CPU time and the memory of an execution are limited across its suspensions."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.queue import leases
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.worker import Worker
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, ExecutionStepRecord, UserRecord
from tests.engine.queue_claims import take
from tests.engine.run.test_worker import accepted, stored


@pytest.fixture
def worker(live_database: Database, clients: SharedClients) -> Worker:
    return Worker(live_database, clients)


COMPUTING = """
organism: {name: n}
listeners:
  - {name: first, description: d, handler: python, config: {code: 'sum(range(100000))'}, peers: [wait]}
  - {name: wait, description: d, handler: delay, config: {seconds: 3600}, peers: [last]}
  - {name: last, description: d, handler: python, config: {code: '1'}}
"""


async def test_cpu_time_before_a_suspension_counts_towards_the_limit(live_database: Database, worker: Worker) -> None:
    execution = await accepted(live_database, COMPUTING)
    await worker.run(await take(live_database, execution))
    assert 0 < (await stored(live_database, execution)).cpu_ms < 20_000
    async with live_database.transaction() as session:
        await session.execute(sa.update(ExecutionRecord).values(cpu_ms=60_000, resume_at=now()))
        await session.execute(sa.update(ExecutionStepRecord).values(completed_at=now()))
    await worker.run(await take(live_database, execution))
    ended = await stored(live_database, execution)
    assert (ended.status, ended.error_message) == (
        ExecutionStatus.ERROR,
        "last: The limit of 60 execution cpu seconds is reached (in use: 60). "
        "Divide the work between several executions, or use smaller messages.",
    )


async def test_released_execution_keeps_its_cpu_time(live_database: Database) -> None:
    execution = await accepted(live_database)
    claimed = await take(live_database, execution)
    claimed.cpu.seconds += 1.5
    async with live_database.transaction() as session:
        await leases.release_leases(session, [claimed])
    assert (await stored(live_database, execution)).cpu_ms == 1_500
    assert (await take(live_database, execution)).cpu.seconds == 1.5


@pytest.mark.parametrize("with_wait", [False, True], ids=["in one run", "with a suspension"])
async def test_memory_of_an_execution_is_limited(live_database: Database, worker: Worker, with_wait: bool) -> None:
    """The input and three answers have 700,000 characters each, and the third answer exceeds the limit."""
    waiting = "handler: delay, config: {seconds: 3600}" if with_wait else "handler: echo"
    text = f"""
organism: {{name: n}}
listeners:
  - {{name: one, description: d, handler: echo, peers: [two]}}
  - {{name: two, description: d, {waiting}, peers: [three]}}
  - {{name: three, description: d, handler: echo}}
"""
    execution = await accepted(live_database, text, input_payload=json.dumps("x" * 700_000))
    async with live_database.transaction() as session:
        await session.execute(sa.update(UserRecord).values(limits={"execution_memory_bytes": 2_500_000}))
    await worker.run(await take(live_database, execution))
    if with_wait:
        async with live_database.transaction() as session:
            await session.execute(sa.update(ExecutionRecord).values(resume_at=now()))
            await session.execute(sa.update(ExecutionStepRecord).values(completed_at=now()))
        await worker.run(await take(live_database, execution))
    ended = await stored(live_database, execution)
    assert ended.status is ExecutionStatus.ERROR
    message = "three: the memory limit of an execution, 2.4 MiB, is reached: 2.0 MiB in use, 0.7 MiB more needed."
    assert (ended.error_message or "").startswith(message)
