"""Claims: which executions a worker claims, in what order, and how claims are released."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.queue.claims import claim_executions, release_orphaned_claims
from bloxserver.engine.queue.recovery import reclaim_all, reclaim_expired
from bloxserver.engine.queue.selection import (
    MAX_PER_FLOW,
    MAX_SELECTED,
    next_executions,
    read_next_executions,
    read_next_resume,
)
from bloxserver.engine.queue.values import ClaimLockBusy
from bloxserver.models.database import Database
from bloxserver.models.tables import (
    QUARANTINE_THRESHOLD,
    ExecutionRecord,
    ExecutionStatus,
    FlowRecord,
    FlowStatus,
    Tier,
    UserRecord,
    WorkerRecord,
)
from bloxserver.models.types import UtcDateTime
from tests.engine.queue_claims import PLENTY, claim
from tests.factories import create_execution, create_flow, create_user

OF_USER = {"free": 2, "pro": 4, "enterprise": 8, "high_frequency": 8}
HEARTBEAT_TIMEOUT = timedelta(seconds=20)


async def next_ids(
    session: AsyncSession, slots: Mapping[str, int] = PLENTY, of_user: Mapping[str, int] = OF_USER
) -> list[UUID]:
    return await read_next_executions(session, now(), slots, of_user)


async def flow_of(session: AsyncSession, tier: Tier = Tier.FREE) -> FlowRecord:
    return await create_flow(session, await create_user(session, tier=tier))


async def executions(session: AsyncSession, flow: FlowRecord, number: int) -> list[UUID]:
    return [(await create_execution(session, flow)).id for _ in range(number)]


async def set_tiers(session: AsyncSession, *tiers: str) -> None:
    """Give the users these tiers, which may be unknown."""
    users = await session.scalars(sa.select(UserRecord.id).order_by(UserRecord.id))
    for user_id, tier in zip(users.all(), tiers, strict=True):
        await session.execute(
            sa.text("UPDATE users SET tier = :tier WHERE id = :id").bindparams(
                sa.bindparam("id", user_id, sa.Uuid()), tier=tier
            )
        )
    await session.commit()


class TestOrder:
    async def test_claims_rotate_between_users_within_their_slots(self, session: AsyncSession) -> None:
        flooding, modest = await flow_of(session, Tier.PRO), await flow_of(session, Tier.PRO)
        flood = await executions(session, flooding, 10)
        late = await executions(session, modest, 1)
        assert await next_ids(session) == [flood[0], late[0], *flood[1:4]]

    async def test_running_executions_use_slots_of_their_user(self, session: AsyncSession) -> None:
        user = await create_user(session)
        flow, other = await create_flow(session, user), await create_flow(session, user)
        running = await create_execution(session, flow, lease=uuid4(), worker_id="w")
        waiting = await executions(session, other, 3)
        assert await next_ids(session) == waiting[:1]
        running.status = ExecutionStatus.SUCCESS
        await session.commit()
        assert await next_ids(session) == waiting[:2]

    async def test_each_tier_has_its_own_slots(self, session: AsyncSession) -> None:
        free = [(await executions(session, await flow_of(session), 2)) for _ in range(3)]
        enterprise = await executions(session, await flow_of(session, Tier.ENTERPRISE), 3)
        places = {"free": 2, "pro": 0, "enterprise": 2, "high_frequency": 1}
        chosen = await next_ids(session, places)
        assert sorted(chosen) == sorted([free[0][0], free[1][0], *enterprise[:2]])

    async def test_backlog_is_claimed_in_pieces(self, session: AsyncSession) -> None:
        flow = await flow_of(session, Tier.ENTERPRISE)
        backlog = await executions(session, flow, MAX_PER_FLOW + 5)
        assert [taken.id for taken in await claim(session)] == backlog[:MAX_PER_FLOW]
        assert [taken.id for taken in await claim(session)] == backlog[MAX_PER_FLOW:]
        assert await claim(session) == []

    async def test_selection_considers_few_executions_of_each_of_many_flows(self, session: AsyncSession) -> None:
        user = await create_user(session, tier=Tier.ENTERPRISE)
        flows = [
            {"id": uuid4(), "user_id": user.id, "name": "f", "organism_yaml": "", "status": FlowStatus.RUNNING}
            for _ in range(MAX_SELECTED // 4)
        ]
        backlog = [{"id": uuid4(), "flow_id": flow["id"], "trigger_type": "manual"} for flow in flows for _ in range(7)]
        await session.execute(sa.insert(FlowRecord), flows)
        await session.execute(sa.insert(ExecutionRecord), backlog)
        looks: list[set[int]] = []
        while taken := await claim(session):
            looks.append(set(Counter(execution.flow_id for execution in taken).values()))
        assert looks == [{3}, {3}, {1}]

    async def test_executions_that_are_not_due_are_not_claimed(self, session: AsyncSession) -> None:
        flow = await flow_of(session)
        moment = now()
        suspended = await create_execution(session, flow, resume_at=moment + timedelta(hours=1))
        due = await create_execution(session, flow, resume_at=moment - timedelta(seconds=1))
        ahead = await create_execution(session, flow, started_at=moment + timedelta(minutes=1))
        assert await next_ids(session) == [due.id, ahead.id], "the clock of the accepting process may be ahead"
        assert await read_next_resume(session, moment) == suspended.resume_at
        assert await read_next_resume(session, moment + timedelta(hours=2)) is None
        assert await read_next_executions(session, moment + timedelta(hours=1), PLENTY, PLENTY) != []

    async def test_started_executions_are_claimed_before_new_ones(self, session: AsyncSession) -> None:
        flow = await flow_of(session)
        moment = now()
        backlog = [
            (await create_execution(session, flow, started_at=moment - timedelta(minutes=10))).id for _ in range(5)
        ]
        resumed = await create_execution(session, flow, resume_at=moment - timedelta(seconds=1))
        assert await next_ids(session) == [resumed.id, backlog[0]]

    async def test_unknown_tiers_have_the_slots_of_free_users(self, session: AsyncSession) -> None:
        flow = await flow_of(session)
        await set_tiers(session, "platinum")
        waiting = await executions(session, flow, 3)
        assert await next_ids(session) == waiting[:2]

    async def test_unknown_tiers_share_the_slots_of_the_free_tier(self, session: AsyncSession) -> None:
        for _ in range(3):
            await executions(session, await flow_of(session), 2)
        await set_tiers(session, "platinum", "free", "gold")
        slots = dict.fromkeys(PLENTY, 2)
        assert len(await next_ids(session, slots)) == 2
        claimed = await claim_executions(session, "w", uuid4(), slots, OF_USER)
        assert [execution.tier for execution in claimed] == ["free", "free"]

    async def test_quarantined_executions_of_unknown_tiers_use_the_slots_of_free_users(
        self, session: AsyncSession
    ) -> None:
        flow = await flow_of(session)
        await set_tiers(session, "platinum")
        suspect = (await create_execution(session, flow, crash_count=QUARANTINE_THRESHOLD)).id
        assert await next_ids(session) == [suspect]
        for _ in range(2):
            await create_execution(session, flow, lease=uuid4(), worker_id="w")
        other = (await create_execution(session, await flow_of(session), crash_count=QUARANTINE_THRESHOLD)).id
        assert await next_ids(session) == [other]

    async def test_query_plan_does_not_depend_on_the_backlog(self, session: AsyncSession) -> None:
        flow = await flow_of(session)
        moment = now()
        rows = [
            {"id": uuid4(), "flow_id": flow.id, "trigger_type": "manual", "started_at": moment, "resume_at": at}
            for at in (None, moment + timedelta(days=1))
            for _ in range(2_000)
        ]
        await session.execute(sa.insert(ExecutionRecord), rows)
        await session.execute(sa.text("ANALYZE"))
        assert len(await next_ids(session)) == 2
        plan = await plan_of_next_executions(session)
        assert "ix_executions_waiting" in plan
        assert "Seq Scan on executions" not in plan
        assert "SCAN e\n" not in plan


class TestClaims:
    async def test_claimed_executions_are_not_claimed_again(self, session: AsyncSession) -> None:
        flow = await flow_of(session)
        execution = await create_execution(session, flow, target="t", input_payload="1", crash_count=3)
        (taken,) = await claim(session, "w-1")
        assert (taken.id, taken.flow_id, taken.target, taken.crash_count) == (execution.id, flow.id, "t", 3)
        await session.refresh(execution)
        assert (execution.lease, execution.worker_id) == (taken.lease, "w-1")
        assert execution.picked_up_at is not None
        assert await claim(session, "w-2") == []

    async def test_two_workers_do_not_claim_at_once(self, live_database: Database) -> None:
        if live_database.engine.dialect.name == "sqlite":
            pytest.skip("has one worker")
        async with live_database.sessions() as session:
            flow = await flow_of(session)
            await executions(session, flow, 4)
        async with live_database.transaction() as first, live_database.transaction() as second:
            taken = await claim_executions(first, "w-1", uuid4(), PLENTY, OF_USER)
            with pytest.raises(ClaimLockBusy):
                await claim_executions(second, "w-2", uuid4(), PLENTY, OF_USER)
        async with live_database.transaction() as second:
            assert await claim_executions(second, "w-2", uuid4(), PLENTY, OF_USER) == []
        assert len(taken) == OF_USER["free"]

    async def test_claim_without_due_executions_does_not_wait_for_the_writer(self, live_database: Database) -> None:
        if live_database.engine.dialect.name == "postgresql":
            pytest.skip("has many writers")
        async with live_database.transaction() as writer, live_database.transaction(read_only=True) as session:
            await writer.execute(sa.select(1))  # holds the lock of the file, and the only connection that writes
            async with asyncio.timeout(5):
                assert await claim(session) == []

    async def test_claim_of_a_reading_session_is_stored(self, live_database: Database) -> None:
        async with live_database.transaction() as session:
            execution = await create_execution(session, await flow_of(session))
        async with live_database.transaction(read_only=True) as session:
            (claimed,) = await claim(session)
        async with live_database.transaction(read_only=True) as session:
            assert (await session.get_one(ExecutionRecord, execution.id)).lease == claimed.lease

    async def test_locked_row_is_not_claimed(self, live_database: Database) -> None:
        if live_database.engine.dialect.name == "sqlite":
            pytest.skip("has one writer")
        async with live_database.sessions() as session:
            held, free = await executions(session, await flow_of(session), 2)
        async with live_database.transaction() as holder, live_database.transaction() as claiming:
            await holder.execute(sa.select(ExecutionRecord.id).where(ExecutionRecord.id == held).with_for_update())
            async with asyncio.timeout(5):
                assert [taken.id for taken in await claim(claiming)] == [free]


class TestReleases:
    async def test_executions_of_dead_workers_are_released_by_the_database_clock(self, session: AsyncSession) -> None:
        flow = await flow_of(session)
        moment = now()
        session.add_all(
            [
                WorkerRecord(worker_id="living", last_heartbeat_at=moment),
                WorkerRecord(worker_id="dead", last_heartbeat_at=moment - 2 * HEARTBEAT_TIMEOUT),
            ]
        )
        rows = {
            name: await create_execution(session, flow, lease=uuid4(), worker_id=name)
            for name in ("living", "dead", "unheard-of", None)
        }
        ended = await create_execution(
            session, flow, lease=uuid4(), worker_id="dead", status=ExecutionStatus.SUCCESS, crash_count=0
        )
        recovered = {
            execution.id: execution.worker_id for execution in await reclaim_expired(session, HEARTBEAT_TIMEOUT)
        }
        assert recovered == {rows[name].id: name for name in ("dead", "unheard-of", None)}
        assert await reclaim_expired(session, HEARTBEAT_TIMEOUT) == []
        for name, row in rows.items():
            await session.refresh(row)
            held = name == "living"
            assert (row.lease is not None, row.worker_id, row.crash_count) == (
                held,
                name if held else None,
                0 if held else 1,
            )
        await session.refresh(ended)
        assert ended.crash_count == 0

    async def test_claims_unknown_to_their_worker_are_released(self, session: AsyncSession) -> None:
        flow = await flow_of(session, Tier.PRO)
        await executions(session, flow, 2)
        known, unknown = await claim(session, "w-1")
        other = await create_execution(session, flow, lease=uuid4(), worker_id="w-2")
        assert await release_orphaned_claims(session, "w-1", {known.lease_key, (unknown.id, uuid4())}) == 1
        left = {row.id: row.lease for row in await session.scalars(sa.select(ExecutionRecord))}
        await session.commit()
        assert left[unknown.id] is None
        assert left[known.id] == known.lease
        assert left[other.id] == other.lease

    async def test_single_process_releases_all_claims(self, session: AsyncSession) -> None:
        flow = await flow_of(session)
        taken = await create_execution(session, flow, lease=uuid4(), worker_id="w-1")
        await create_execution(session, flow)
        assert await reclaim_all(session) == [(taken.id, "w-1")]
        await session.refresh(taken)
        assert (taken.lease, taken.worker_id, taken.crash_count) == (None, None, 1)


async def plan_of_next_executions(session: AsyncSession) -> str:
    dialect = session.get_bind().dialect.name
    explain = "EXPLAIN " if dialect == "postgresql" else "EXPLAIN QUERY PLAN "
    values = [f"{whose}_{tier.value}" for whose in ("user", "tier") for tier in Tier]
    statement = sa.text(explain + str(next_executions(dialect))).bindparams(
        sa.bindparam("moment", now(), UtcDateTime()),
        *(sa.bindparam(name, 100, sa.Integer()) for name in ("most", "most_in_all", "quarantined", *values)),
    )
    return "".join(f"{row[-1]}\n" for row in await session.execute(statement))


async def test_claim_of_a_reading_session_holds_the_lock_until_its_end(live_database: Database) -> None:
    async with live_database.transaction() as session:
        await create_execution(session, await flow_of(session))
    async with live_database.transaction(read_only=True) as session:
        assert len(await claim(session)) == 1
        async with live_database.transaction(read_only=True) as other:
            if live_database.is_sqlite:
                assert session.sync_session.bind is live_database.engine.sync_engine
            else:
                with pytest.raises(ClaimLockBusy):
                    await claim(other)
    async with live_database.transaction(read_only=True) as session:
        assert await claim(session) == []
