"""The order of the flows that run."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.tables import FlowStatus, UserRecord
from bloxserver.queries.running_flows import STOPPED_BY_PLAN, number_running, read_running, read_stopped_by_plan
from tests.factories import create_execution, create_flow, create_user


async def test_most_recently_used_flows_are_first_then_the_oldest(session: AsyncSession, user: UserRecord) -> None:
    moment = now()
    by_name = {
        name: await create_flow(session, user, name=name, created_at=moment - timedelta(days=age))
        for name, age in (("new", 1), ("old", 9), ("used long ago", 5), ("used now", 5))
    }
    for name, hours in (("used long ago", 20), ("used long ago", 30), ("used now", 1), ("used now", 40)):
        await create_execution(session, by_name[name], started_at=moment - timedelta(hours=hours))
    await create_execution(session, by_name["old"], started_at=moment, mode="other")
    assert [flow.name for flow in await read_running(session, user.id)] == ["used now", "used long ago", "old", "new"]
    assert [flow.name for flow in await read_running(session, user.id, 2)] == ["used now", "used long ago"]


async def test_other_flows_do_not_run(session: AsyncSession, user: UserRecord) -> None:
    for status in FlowStatus:
        await create_flow(session, user, name=status.value, status=status)
    await create_flow(session, user, deleted_at=now())
    await create_flow(session, await create_user(session))
    assert {flow.name for flow in await read_running(session, user.id)} == {"starting", "running"}
    assert await session.scalar(sa.select(number_running(user.id))) == 2


async def test_flows_that_the_plan_has_stopped_are_listed_until_they_start(
    session: AsyncSession, user: UserRecord
) -> None:
    for status in FlowStatus:
        await create_flow(session, user, name=status.value, status=status, error_message=STOPPED_BY_PLAN)
    await create_flow(session, user, status=FlowStatus.STOPPED, error_message="Another reason")
    await create_flow(session, user, status=FlowStatus.STOPPED, error_message=STOPPED_BY_PLAN, deleted_at=now())
    assert [flow.name for flow in await read_stopped_by_plan(session, user.id, 10)] == ["stopped", "stopping"]
    assert [flow.name for flow in await read_stopped_by_plan(session, user.id, 1)] == ["stopped"]
