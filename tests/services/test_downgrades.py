"""A smaller plan stops the flows that it does not allow to run."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import Forbidden
from bloxserver.models.database import Database
from bloxserver.models.tables import AuditEventRecord, FlowRecord, FlowStatus, Tier, UserRecord
from bloxserver.plans import PLANS
from bloxserver.queries.running_flows import STOPPED_BY_PLAN
from bloxserver.services.downgrades import stop_flows_beyond
from bloxserver.services.flows import start_flow, stop_flow
from bloxserver.services.user_accounts import set_tier
from tests.factories import create_execution, create_flow, create_user
from tests.lock_waits import wait_for_lock_wait

STOPPED, STARTING, RUNNING, STOPPING = (
    FlowStatus.STOPPED,
    FlowStatus.STARTING,
    FlowStatus.RUNNING,
    FlowStatus.STOPPING,
)


async def statuses(session: AsyncSession, user_id: UUID) -> dict[str, FlowStatus]:
    wanted = sa.select(FlowRecord.name, FlowRecord.status).where(FlowRecord.user_id == user_id)
    return {row.name: row.status for row in await session.execute(wanted)}


async def test_most_recently_used_flow_keeps_running(session: AsyncSession) -> None:
    user = await create_user(session, tier=Tier.PRO)
    others = {"stopped": STOPPED, "stopping": STOPPING, "failed": FlowStatus.ERROR}
    for name, status in {"unused": RUNNING, "used": RUNNING, "starting": STARTING, **others}.items():
        flow = await create_flow(session, user, name=name, status=status)
        if name == "used":
            await create_execution(session, flow)
    await set_tier(session, user, Tier.FREE)
    expected = {"unused": STOPPING, "used": RUNNING, "starting": STOPPING, **others}
    assert await statuses(session, user.id) == expected
    stopped = await session.scalars(sa.select(FlowRecord).where(FlowRecord.error_message == STOPPED_BY_PLAN))
    assert {(flow.name, flow.stop_requested_at is not None) for flow in stopped} == {
        ("unused", True),
        ("starting", True),
    }
    events = await session.scalars(sa.select(AuditEventRecord).where(AuditEventRecord.action == "flow.stopped"))
    after = {"status": "stopping", "errorMessage": STOPPED_BY_PLAN}
    assert [(event.actor, event.after) for event in events] == [("user", after)] * 2


@pytest.mark.parametrize(
    ("tier", "limits", "to"),
    [
        *((Tier.PRO, None, Tier.PRO), (Tier.FREE, None, Tier.PRO), (Tier.ENTERPRISE, None, Tier.PRO)),
        *((Tier.PRO, {"flows": 2}, Tier.FREE), (Tier.PRO, {"flows": 1}, Tier.FREE)),
        (Tier.ENTERPRISE, None, Tier.HIGH_FREQUENCY),
    ],
)
async def test_flows_within_the_plan_keep_running(
    session: AsyncSession, tier: Tier, limits: dict[str, int] | None, to: Tier
) -> None:
    user = await create_user(session, tier=tier, limits=limits)
    for name in ("a", "b"):
        await create_flow(session, user, name=name)
    assert await stop_flows_beyond(session, user, to) == 0
    assert await statuses(session, user.id) == {"a": RUNNING, "b": RUNNING}


class TestStart:
    async def test_start_beyond_the_limit_is_refused_until_a_flow_is_stopped(
        self, session: AsyncSession, user: UserRecord
    ) -> None:
        user.stripe_customer_id = "cus_1"
        running = await create_flow(session, user)
        flow = await create_flow(session, user, status=STOPPED)
        with pytest.raises(Forbidden) as raised:
            await start_flow(session, user.id, flow.id)
        error = raised.value
        assert (error.code, error.details) == ("running_flows_limit_reached", {"limit": 1, "used": 1})
        await stop_flow(session, user.id, running.id)
        assert (await start_flow(session, user.id, flow.id)).status is STARTING

    @pytest.mark.parametrize("status", [STOPPED, FlowStatus.ERROR])
    async def test_user_within_the_plan_can_start_each_flow(self, session: AsyncSession, status: FlowStatus) -> None:
        limit = PLANS["free"].flows
        user, other = await create_user(session), await create_user(session)
        await create_flow(session, other)
        await create_flow(session, user, deleted_at=now())
        for _ in range(limit):
            flow = await create_flow(session, user, status=status)
            assert (await start_flow(session, user.id, flow.id)).status is STARTING

    async def test_flows_that_other_programs_inserted_can_be_started(self, session: AsyncSession) -> None:
        """No plan of the user has ever changed."""
        user = await create_user(session)
        for _ in range(PLANS["free"].flows + 1):
            flow = await create_flow(session, user, status=STOPPED)
            assert (await start_flow(session, user.id, flow.id)).status is STARTING

    async def test_larger_plan_allows_more(self, session: AsyncSession, user: UserRecord) -> None:
        await create_flow(session, user)
        flow = await create_flow(session, user, status=STOPPED, error_message=STOPPED_BY_PLAN)
        user.limits, user.stripe_customer_id = {"flows": 2}, "cus_1"
        await session.commit()
        started = await start_flow(session, user.id, flow.id)
        assert (started.status, started.error_message) == (STARTING, None)


class TestConcurrency:
    async def test_of_concurrent_starts_as_many_succeed_as_the_plan_allows(self, live_database: Database) -> None:
        async with live_database.sessions() as session:
            user = await create_user(session, limits={"flows": 2}, stripe_customer_id="cus_1")
            flows = [await create_flow(session, user, status=STOPPED) for _ in range(6)]

        async def start(flow_id: UUID) -> str:
            try:
                async with live_database.transaction() as session:
                    return (await start_flow(session, user.id, flow_id)).status
            except Forbidden as error:
                return error.code

        found = sorted(await asyncio.gather(*(start(flow.id) for flow in flows)))
        assert found == ["running_flows_limit_reached"] * 4 + ["starting"] * 2

    async def test_start_does_not_pass_a_concurrent_downgrade(self, live_database: Database, backend: str) -> None:
        """The user of the request was read before the plan changed."""
        async with live_database.sessions() as session:
            user = await create_user(session, tier=Tier.PRO)
            await create_flow(session, user)
            flow = await create_flow(session, user, status=STOPPED)

        async def start() -> None:
            async with live_database.transaction() as session:
                await start_flow(session, user.id, flow.id)

        async with live_database.transaction() as session:
            changed = await session.get_one(UserRecord, user.id)
            await set_tier(session, changed, Tier.FREE)
            starting = asyncio.create_task(start())
            if backend == "postgresql":  # SQLite has one writer
                await wait_for_lock_wait(live_database, starting)
        with pytest.raises(Forbidden, match="As many flows run"):
            await starting
