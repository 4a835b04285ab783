"""Which executions are handed over, and in what order."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.tables import ExecutionStatus, Tier
from bloxserver.api.models.types import now
from bloxserver.queries.dispatch import read_due_executions, read_next_resume
from bloxserver.services.dispatch import forget_dispatches, mark_dispatched
from tests.factories import create_execution, create_flow, create_user

PLACES = {"free": 2, "pro": 4, "enterprise": 8, "high_frequency": 8}


async def test_users_take_turns_and_keep_to_their_places(session: AsyncSession) -> None:
    flooding = await create_flow(session, await create_user(session, tier=Tier.PRO))
    modest = await create_flow(session, await create_user(session))
    flood = [await create_execution(session, flooding) for _ in range(10)]
    late = await create_execution(session, modest)

    due = await read_due_executions(session, now(), PLACES, 100)
    assert [row.execution_id for row in due] == [flood[0].id, late.id, flood[1].id, flood[2].id, flood[3].id]
    assert {row.tier for row in due} == {"pro", "free"}

    await mark_dispatched(session, [(row.execution_id, row.number) for row in due])
    assert await read_due_executions(session, now(), PLACES, 100) == [], "the places are taken"

    flood[0].status = ExecutionStatus.SUCCESS
    await session.commit()
    due = await read_due_executions(session, now(), PLACES, 100)
    assert [row.execution_id for row in due] == [flood[4].id]

    await forget_dispatches(session)
    assert len(await read_due_executions(session, now(), PLACES, 100)) == 5


async def test_parked_executions_wait_for_their_time(session: AsyncSession) -> None:
    flow = await create_flow(session, await create_user(session))
    at = now() + timedelta(hours=1)
    parked = await create_execution(session, flow, resume_at=at, dispatch_number=1)
    assert await read_due_executions(session, now(), PLACES, 100) == []
    assert await read_next_resume(session, now()) == at
    assert await read_next_resume(session, at) is None, "one that is due waits for a place"
    (due,) = await read_due_executions(session, at, PLACES, 100)
    assert (due.execution_id, due.number) == (parked.id, 1)


async def test_an_older_dispatch_does_not_mark_a_newer_one(session: AsyncSession) -> None:
    flow = await create_flow(session, await create_user(session))
    execution = await create_execution(session, flow, dispatch_number=2)
    await mark_dispatched(session, [(execution.id, 1)])
    assert len(await read_due_executions(session, now(), PLACES, 100)) == 1
    await mark_dispatched(session, [(execution.id, 2)])
    assert await read_due_executions(session, now(), PLACES, 100) == []
