"""Reads of flows."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.current_user import CurrentUser
from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord, FlowStatus, UserRecord
from bloxserver.queries.flows import (
    count_flows,
    flow_exists,
    has_flows_to_reconcile,
    has_running_executions,
    read_flow,
    read_flows,
    read_flows_to_reconcile,
    require_flow,
)
from bloxserver.queries.paging import PageRequest
from tests.factories import create_execution, create_flow, create_user

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize("lock", [False, True])
async def test_flow_is_found_only_for_its_owner(session: AsyncSession, user: UserRecord, lock: bool) -> None:
    flow = await create_flow(session, user)
    other = await create_user(session)
    assert (await read_flow(session, user.id, flow.id, lock=lock)).id == flow.id
    await require_flow(session, user.id, flow.id, lock=lock)
    for read in (read_flow, require_flow):
        for user_id, flow_id in ((other.id, flow.id), (user.id, uuid4())):
            with pytest.raises(NotFound) as error:
                await read(session, user_id, flow_id, lock=lock)
            assert (error.value.code, error.value.status) == ("flow_not_found", 404)


async def test_deleted_flow_is_not_found_listed_or_counted(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user, deleted_at=now())
    for read in (read_flow, require_flow):
        with pytest.raises(NotFound):
            await read(session, user.id, flow.id)
    page = await read_flows(session, CurrentUser(user, {}), PageRequest(1, 10))
    assert (page.items, page.total) == ([], 0)
    assert await count_flows(session, user.id) == 0


async def test_flow_read_again_has_the_values_of_the_database(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user, name="Before")
    await session.execute(sa.update(FlowRecord).values(name="After").execution_options(synchronize_session=False))
    assert flow.name == "Before"
    assert (await read_flow(session, user.id, flow.id)).name == "After"


async def test_flows_are_listed_in_pages_from_the_most_recently_changed(
    session: AsyncSession, user: UserRecord
) -> None:
    moment = now()
    middle = await create_flow(session, user, updated_at=moment - 2 * MINUTE)
    oldest = await create_flow(session, user, updated_at=moment - 3 * MINUTE)
    newest = await create_flow(session, user, updated_at=moment - MINUTE)
    await create_flow(session, await create_user(session), updated_at=moment)
    first = await read_flows(session, CurrentUser(user, {}), PageRequest(1, 2))
    second = await read_flows(session, CurrentUser(user, {}), PageRequest(2, 2))
    assert [row.id for row in first.items] == [newest.id, middle.id]
    assert [row.id for row in second.items] == [oldest.id]
    assert (first.total, second.total) == (3, 3)
    assert (first.has_more, second.has_more) == (True, False)
    assert await count_flows(session, user.id) == 3


async def test_flows_changed_at_the_same_moment_are_ordered_by_id(session: AsyncSession, user: UserRecord) -> None:
    moment = now()
    flows = [await create_flow(session, user, updated_at=moment) for _ in range(3)]
    page = await read_flows(session, CurrentUser(user, {}), PageRequest(1, 3))
    assert [row.id for row in page.items] == sorted((flow.id for flow in flows), reverse=True)


async def test_deleted_and_settled_flows_do_not_wait_for_the_engine(session: AsyncSession, user: UserRecord) -> None:
    await create_flow(session, user, status=FlowStatus.STARTING, deleted_at=now())
    for status in (FlowStatus.RUNNING, FlowStatus.STOPPED, FlowStatus.ERROR):
        await create_flow(session, user, status=status)
    assert not await has_flows_to_reconcile(session)
    assert await read_flows_to_reconcile(session, 10, now()) == []


@pytest.mark.parametrize("status", [FlowStatus.STARTING, FlowStatus.STOPPING])
async def test_starting_and_stopping_flows_wait_for_the_engine(
    session: AsyncSession, user: UserRecord, status: FlowStatus
) -> None:
    flow = await create_flow(session, user, status=status)
    assert await has_flows_to_reconcile(session)
    assert await read_flows_to_reconcile(session, 10, now()) == [flow.id]


async def test_only_executions_that_have_not_ended_count_as_running(session: AsyncSession, user: UserRecord) -> None:
    busy, idle, empty = [await create_flow(session, user) for _ in range(3)]
    await create_execution(session, busy)
    for status in set(ExecutionStatus) - {ExecutionStatus.RUNNING}:
        await create_execution(session, idle, status=status)
    assert {busy.id, idle.id, empty.id} == set(await session.scalars(sa.select(FlowRecord.id)))
    assert list(await session.scalars(sa.select(FlowRecord.id).where(has_running_executions()))) == [busy.id]


async def test_executions_of_a_deleted_flow_are_excluded(session: AsyncSession, user: UserRecord) -> None:
    kept = await create_execution(session, await create_flow(session, user))
    await create_execution(session, await create_flow(session, user, deleted_at=now()))
    assert list(await session.scalars(sa.select(ExecutionRecord.id).where(flow_exists()))) == [kept.id]


async def test_stopping_flow_waits_for_its_executions_until_the_grace_period_ends(
    session: AsyncSession, user: UserRecord
) -> None:
    moment = now()
    stopping = {"status": FlowStatus.STOPPING}
    recent, old = moment - timedelta(seconds=5), moment - timedelta(seconds=60)
    flows = {
        "starting": await create_flow(session, user, status=FlowStatus.STARTING),
        "idle": await create_flow(session, user, **stopping, stop_requested_at=recent),
        "busy": await create_flow(session, user, **stopping, stop_requested_at=recent),
        "grace over": await create_flow(session, user, **stopping, stop_requested_at=old),
        "unknown request time": await create_flow(session, user, **stopping),
        "running": await create_flow(session, user),
        "stopped": await create_flow(session, user, status=FlowStatus.STOPPED),
    }
    for name in flows.keys() - {"idle"}:
        await create_execution(session, flows[name])
    await create_execution(session, flows["idle"], status=ExecutionStatus.SUCCESS)
    grace_over = moment - timedelta(seconds=30)
    found = await read_flows_to_reconcile(session, 100, grace_over)
    assert found == [flows[name].id for name in ("starting", "idle", "grace over", "unknown request time")]
    assert await read_flows_to_reconcile(session, 2, grace_over) == found[:2]
