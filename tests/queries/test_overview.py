"""The overview of the installation, over the rows of all users."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.models.tables import (
    ExecutionStatus,
    FlowRecord,
    FlowStatus,
    Tier,
    TriggerType,
    UserRecord,
    WorkerRecord,
)
from bloxserver.queries.overview import TierQueue, count_ended, read_queue, read_schedules, read_workers
from tests.factories import create_execution, create_flow, create_trigger, create_user
from tests.statements import count_statements

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


async def flow_of(session: AsyncSession, tier: Tier) -> FlowRecord:
    return await create_flow(session, await create_user(session, tier=tier))


async def test_an_empty_queue_has_every_tier(session: AsyncSession) -> None:
    assert await read_queue(session, now()) == {tier: TierQueue() for tier in Tier}


async def test_the_queue_by_tier(session: AsyncSession, database_engine: AsyncEngine) -> None:
    moment = now()
    free, pro = await flow_of(session, Tier.FREE), await flow_of(session, Tier.PRO)
    await create_execution(session, free, started_at=moment - 90 * SECOND)
    await create_execution(session, free, started_at=moment - 30 * SECOND)
    await create_execution(session, free, started_at=moment, lease=uuid4())
    other = await flow_of(session, Tier.FREE)
    # Accepted long ago and suspended until now: it has only just begun to wait.
    await create_execution(session, other, started_at=moment - 60 * MINUTE, resume_at=moment - 10 * SECOND)
    await create_execution(session, other, started_at=moment - 60 * MINUTE, resume_at=moment + MINUTE)
    for status in set(ExecutionStatus) - {ExecutionStatus.RUNNING}:
        await create_execution(session, pro, status=status)
    await create_execution(session, pro, started_at=moment - 5 * SECOND, resume_at=moment + MINUTE)
    with count_statements(database_engine) as statements:
        queue = await read_queue(session, moment)
    assert len(statements) == 1
    assert queue[Tier.FREE] == TierQueue(waiting=3, running=1, suspended=1, due_since=moment - 90 * SECOND)
    assert queue[Tier.PRO] == TierQueue(suspended=1)
    assert queue[Tier.ENTERPRISE] == TierQueue()


async def test_a_tier_that_nobody_knows_counts_as_free(session: AsyncSession) -> None:
    moment = now()
    first, second = await flow_of(session, Tier.FREE), await flow_of(session, Tier.PRO)
    await create_execution(session, first, started_at=moment - SECOND)
    await create_execution(session, second, started_at=moment - MINUTE)
    await session.execute(
        sa.text("UPDATE users SET tier = 'platinum' WHERE id = :id").bindparams(
            sa.bindparam("id", second.user_id, type_=UserRecord.id.type)
        )
    )
    assert (await read_queue(session, moment))[Tier.FREE] == TierQueue(waiting=2, due_since=moment - MINUTE)


async def test_only_workers_that_beat_are_alive(session: AsyncSession) -> None:
    moment = now()
    for name, age in (("new", 1), ("old", 19), ("dead", 21)):
        session.add(
            WorkerRecord(worker_id=name, last_heartbeat_at=moment - age * SECOND, started_at=moment - 10 * age * SECOND)
        )
    await session.commit()
    workers = await read_workers(session, 20 * SECOND)
    assert [worker.name for worker in workers] == ["old", "new"]
    assert 18 * SECOND < workers[0].silence < 20 * SECOND


async def test_schedules_of_running_flows(session: AsyncSession) -> None:
    moment = now()
    flow = await flow_of(session, Tier.FREE)
    stopped = await create_flow(session, await create_user(session), status=FlowStatus.STOPPED)
    config = {"cron": "* * * * *"}
    for of, due, enabled in (
        (flow, moment - 5 * SECOND, True),
        (flow, moment - 3 * SECOND, True),
        (flow, moment + MINUTE, True),
        (flow, None, True),
        (flow, moment - MINUTE, False),
        (stopped, moment - MINUTE, True),
    ):
        await create_trigger(session, of, type=TriggerType.SCHEDULE, config=config, next_fire_at=due, enabled=enabled)
    await create_trigger(session, flow, type=TriggerType.WEBHOOK)
    assert await read_schedules(session, moment) == (4, 2, moment - 5 * SECOND)


async def test_what_has_ended_since(session: AsyncSession) -> None:
    moment = now()
    flow = await flow_of(session, Tier.FREE)
    for status, age in (("success", 1), ("success", 2), ("success", 61), ("error", 3), ("running", None)):
        completed_at = None if age is None else moment - age * MINUTE
        await create_execution(session, flow, status=ExecutionStatus(status), completed_at=completed_at)
    ended = await count_ended(session, moment - 60 * MINUTE)
    assert ended == {ExecutionStatus.SUCCESS: 2, ExecutionStatus.ERROR: 1}
