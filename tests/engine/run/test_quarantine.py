"""Quarantine: an execution that crashes workers fails, and executions on the same worker do not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.queue.checkpoints import CheckpointWriter
from bloxserver.engine.queue.claims import claim_executions, with_steps
from bloxserver.engine.queue.recovery import reclaim_all
from bloxserver.engine.queue.selection import read_next_executions
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.messages import Change, Message, Step
from bloxserver.engine.run.quarantine import Quarantine
from bloxserver.engine.run.runner import MAX_CRASHES, ExecutionRunner
from bloxserver.engine.run.worker import Worker
from bloxserver.models.database import Database
from bloxserver.models.enums import Tier
from bloxserver.models.tables import QUARANTINE_THRESHOLD, ExecutionRecord, ExecutionStatus, StepStatus
from bloxserver.settings import Settings
from tests.engine.queue_claims import PLENTY, claimer_of, ended, take
from tests.factories import create_execution, create_flow, create_user
from tests.statements import count_statements
from tests.steps import create_step

SUSPECT = {"crash_count": QUARANTINE_THRESHOLD}


async def quarantined_of_a_new_user(session: AsyncSession, number: int, **values: object) -> list[UUID]:
    flow = await create_flow(session, await create_user(session))
    return [(await create_execution(session, flow, **SUSPECT, **values)).id for _ in range(number)]


async def test_execution_beside_a_crashing_one_does_not_fail(session: AsyncSession) -> None:
    """No step ends before the crash, so crashing executions cannot be distinguished from others."""
    flow = await create_flow(session, await create_user(session, tier=Tier.ENTERPRISE))
    ids = [(await create_execution(session, flow)).id for _ in range(40)]
    killers = set(ids[3:36:8])
    given_up: list[UUID] = []
    quarantined, deaths, most_beside = Quarantine(), 0, 0
    while taken := await claim_executions(session, "w", uuid4(), PLENTY, PLENTY, quarantined.slots):
        for execution in taken:
            quarantined.begin(execution)
        over = [execution.id for execution in taken if execution.crash_count == MAX_CRASHES]
        given_up += over
        await end(session, over)
        alive = [execution for execution in taken if execution.id not in over]
        if killers & {execution.id for execution in alive}:
            most_beside = max([most_beside, *(each.crash_count for each in alive if each.id not in killers)])
            quarantined, deaths = Quarantine(), deaths + 1
            await reclaim_all(session)
        else:
            for execution in taken:
                quarantined.clear(execution)
            await end(session, [execution.id for execution in alive])
    assert set(given_up) == killers
    assert most_beside < MAX_CRASHES - 1
    assert deaths <= len(killers) * MAX_CRASHES
    assert await session.scalar(sa.select(sa.func.count()).where(ExecutionRecord.status == "running")) == 0


async def end(session: AsyncSession, ids: Sequence[UUID]) -> None:
    await session.execute(
        sa.update(ExecutionRecord)
        .where(ExecutionRecord.id.in_(ids))
        .values(status=ExecutionStatus.SUCCESS, completed_at=now(), lease=None, worker_id=None)
    )


async def test_executions_leave_quarantine_after_unrelated_crashes(session: AsyncSession) -> None:
    flow = await create_flow(session, await create_user(session, tier=Tier.ENTERPRISE))
    for _ in range(20):
        await create_execution(session, flow, **SUSPECT)
    quarantined = Quarantine()
    rounds: list[int] = []
    while taken := await claim_executions(session, "w", uuid4(), PLENTY, PLENTY, quarantined.slots):
        rounds.append(len(taken))
        for execution in taken:
            quarantined.begin(execution)
        await end(session, [execution.id for execution in taken])
        for execution in taken:
            quarantined.clear(execution)
    assert rounds == [1, 2, 4, 8, 5]


async def test_completed_step_frees_a_quarantine_slot(live_database: Database, clients: SharedClients) -> None:
    async with live_database.sessions() as session:
        execution = await create_execution(session, await create_flow(session, await create_user(session)), **SUSPECT)
    taken = await take(live_database, execution)
    quarantined = Quarantine()
    quarantined.begin(taken)
    running = ExecutionRunner(
        live_database, CheckpointWriter(live_database), clients, taken, lambda: quarantined.clear(taken)
    )
    places = [quarantined.slots]
    for status in (StepStatus.RUNNING, StepStatus.SUCCESS, StepStatus.RUNNING):
        completed_at = None if status is StepStatus.RUNNING else now()
        step = Step(Message("a", 1), "echo", status, now(), completed_at=completed_at, sequence=len(places))
        await running._save(Change([step]))
        places.append(quarantined.slots)
    assert places == [0, 0, 2, 2]


async def test_worker_counts_its_quarantined_executions(live_database: Database, clients: SharedClients) -> None:
    async with live_database.sessions() as session:
        execution = await create_execution(session, await create_flow(session, await create_user(session)), **SUSPECT)
    worker, left = Worker(live_database, clients), asyncio.Event()
    assert worker.quarantine_slots() == 1
    worker.begin(await take(live_database, execution), left.set)
    assert worker.quarantine_slots() == 0
    async with asyncio.timeout(20):
        await left.wait()
    assert worker.quarantine_slots() == 2


async def test_unreadable_steps_do_not_block_other_executions(
    live_settings: Settings, live_database: Database, clients: SharedClients
) -> None:
    """A newer version may have saved steps with an unknown status."""
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        strange = await create_execution(session, flow, picked_up_at=now(), started_at=now() - timedelta(minutes=1))
        await create_step(session, strange)
        await session.execute(sa.text("UPDATE execution_steps SET status = 'unheard'"))
        await session.commit()
        other = await create_execution(session, flow)
    worker = Worker(live_database, clients, retry_seconds=0.05)
    claimer = await claimer_of(live_settings, live_database, worker, "w")
    working = asyncio.create_task(claimer.run())
    await ended(live_database, other)
    async with live_database.sessions() as session:
        assert (await session.get_one(ExecutionRecord, strange.id)).status is ExecutionStatus.RUNNING
        await session.execute(sa.text("UPDATE execution_steps SET status = 'success'"))
        await session.commit()
    await ended(live_database, strange)
    working.cancel()
    await asyncio.wait([working])


async def test_a_claim_reads_no_steps(live_database: Database) -> None:
    """Steps may cause the crashes. A claim that fails on them would never count a crash."""
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        await create_step(session, await create_execution(session, flow, picked_up_at=now()))
    with count_statements(live_database.engine) as statements:
        async with live_database.transaction() as session:
            (taken,) = await claim_executions(session, "w", uuid4(), PLENTY, PLENTY)
    assert [statement for statement in statements if "execution_steps" in statement] == []
    async with live_database.transaction() as session:
        assert len((await with_steps(session, taken)).steps) == 1


class TestChoice:
    async def next_ids(self, session: AsyncSession, quarantined: int, places: int = 2) -> list[UUID]:
        return await read_next_executions(session, now(), PLENTY, dict.fromkeys(PLENTY, places), quarantined)

    async def test_selection_limits_quarantined_executions(self, session: AsyncSession) -> None:
        ids = await quarantined_of_a_new_user(session, 3)
        found = [await self.next_ids(session, wanted) for wanted in range(4)]
        assert found == [[], ids[:1], ids[:2], ids[:2]]

    async def test_executions_with_fewest_crashes_are_selected_first(self, session: AsyncSession) -> None:
        flow = await create_flow(session, await create_user(session))
        bad, better = [
            (await create_execution(session, flow, crash_count=QUARANTINE_THRESHOLD + more)).id for more in (2, 1)
        ]
        assert await self.next_ids(session, 1) == [better]
        assert await self.next_ids(session, 2) == [bad, better], "in their usual order, where there is room for both"

    async def test_quarantined_executions_do_not_delay_others(self, session: AsyncSession) -> None:
        flow = await create_flow(session, await create_user(session))
        quarantined = [(await create_execution(session, flow, **SUSPECT)).id for _ in range(30)]
        other = (await create_execution(session, flow)).id
        assert await self.next_ids(session, 0) == [other]
        assert sorted(await self.next_ids(session, 1)) == sorted([quarantined[0], other])

    async def test_user_without_free_slots_does_not_block_others(self, session: AsyncSession) -> None:
        busy = await create_flow(session, await create_user(session))
        for values in ({"lease": uuid4(), "worker_id": "w"}, {"lease": uuid4(), "worker_id": "w"}, SUSPECT):
            await create_execution(session, busy, **values)
        assert await self.next_ids(session, 1) == []
        others = await quarantined_of_a_new_user(session, 1)
        assert await self.next_ids(session, 1) == others

    async def test_quarantined_execution_that_is_not_due_is_not_selected(self, session: AsyncSession) -> None:
        await quarantined_of_a_new_user(session, 1, resume_at=now() + timedelta(hours=1))
        assert await self.next_ids(session, 1) == []
        due = await quarantined_of_a_new_user(session, 1, resume_at=now() - timedelta(seconds=1))
        assert await self.next_ids(session, 1) == due
