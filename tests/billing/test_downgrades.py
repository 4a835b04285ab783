"""The end of a subscription stops the flows beyond the plan, and deletes none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from bloxserver.billing.prices import PRO_LOOKUP_KEY
from bloxserver.billing.state import BillingState
from bloxserver.billing.sync import store_state
from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.enums import TierSource
from bloxserver.models.tables import AuditEventRecord, FlowRecord, FlowStatus, Tier
from bloxserver.plans import PLANS
from bloxserver.queries.flows import read_flow
from bloxserver.queries.running_flows import STOPPED_BY_PLAN, number_running
from bloxserver.services.flows import update_flow
from tests.api.contract import API, assert_problem, covers
from tests.billing.billing_world import BillingWorld, event_of
from tests.factories import create_execution, create_flow, create_user
from tests.lock_waits import wait_for_lock_wait


async def subscribed(world: BillingWorld, status: str = "active") -> dict[str, Any]:
    """A subscription of a user with three running flows, of which the second was used last."""
    customer_id = await world.customer()
    made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, status)
    await world.send(event_of(customer_id))
    user = await world.user()
    async with world.database.sessions() as session:
        for name in ("first", "second", "third"):
            flow = await create_flow(session, user, name=name)
            if name == "second":
                await create_execution(session, flow)
    return made


def names(flows: list[dict[str, Any]]) -> list[str]:
    return [flow["name"] for flow in flows]


@covers("billing.flows", "billing.downgrade")
async def test_end_of_a_subscription_stops_the_least_recently_used_flows(world: BillingWorld) -> None:
    made = await subscribed(world)
    before = (await world.billing())["flows"]
    assert (before["limit"], before["used"], before["stoppedByPlan"]) == (100, 3, [])
    assert names(before["running"]) == ["second", "first", "third"]
    made["status"] = "canceled"
    assert (await world.send(event_of(made["customer"], 2))).status_code == 200
    after = (await world.billing())["flows"]
    assert (after["limit"], after["used"]) == (1, 1)
    assert names(after["running"]) == ["second"]
    assert names(after["stoppedByPlan"]) == ["first", "third"]
    flow = (await world.client.get(f"{API}/flows/{after['stoppedByPlan'][0]['id']}")).json()
    assert (flow["status"], flow["errorMessage"]) == ("stopping", STOPPED_BY_PLAN)
    async with world.database.sessions() as session:
        found = await session.scalars(sa.select(AuditEventRecord).where(AuditEventRecord.action == "flow.stopped"))
        assert [(event.actor, event.actor_id) for event in found] == [("billing", "stripe")] * 2


@covers("limits.running-flows")
async def test_user_chooses_which_flow_runs_after_the_change(world: BillingWorld) -> None:
    made = await subscribed(world)
    made["status"] = "canceled"
    await world.send(event_of(made["customer"], 2))
    flows = (await world.billing())["flows"]
    async with world.database.transaction() as session:
        stopped = sa.update(FlowRecord).where(FlowRecord.status == FlowStatus.STOPPING)
        await session.execute(stopped.values(status=FlowStatus.STOPPED))
    running, wanted = flows["running"][0]["id"], flows["stoppedByPlan"][0]["id"]
    assert_problem(
        await world.client.post(f"{API}/flows/{wanted}/start"),
        403,
        "running_flows_limit_reached",
        "As many flows run as the plan allows (1). Stop one of them, or upgrade.",
        {"limit": 1, "used": 1, "upgradeUrl": "http://localhost:3000/billing"},
    )
    await world.client.post(f"{API}/flows/{running}/stop")
    assert (await world.client.post(f"{API}/flows/{wanted}/start")).json()["errorMessage"] is None
    flows = (await world.billing())["flows"]
    assert (names(flows["running"]), names(flows["stoppedByPlan"])) == (["first"], ["third"])


@pytest.mark.parametrize("status", ["trialing", "past_due"])
async def test_plan_that_is_kept_stops_no_flow(world: BillingWorld, status: str) -> None:
    made = await subscribed(world)
    made["status"] = status
    await world.send(event_of(made["customer"], 2))
    flows = (await world.billing())["flows"]
    assert (flows["used"], flows["stoppedByPlan"]) == (3, [])


async def test_change_of_a_flow_does_not_deadlock_with_the_end_of_a_subscription(
    live_database: Database, backend: str
) -> None:
    """The change holds the flow, and then inserts rows that refer to the user."""
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")
    async with live_database.sessions() as session:
        columns = {"stripe_customer_id": "cus_1", "stripe_subscription_id": "sub_1"}
        user = await create_user(session, tier=Tier.PRO, tier_source=TierSource.STRIPE, **columns)
        flows = [await create_flow(session, user) for _ in range(3)]

    async def end_subscription() -> None:
        async with live_database.transaction() as session:
            assert await store_state(session, "cus_1", BillingState(), now())

    async with live_database.transaction() as session:
        await read_flow(session, user.id, flows[0].id, lock=True)
        ending = asyncio.create_task(end_subscription())
        await wait_for_lock_wait(live_database, ending)
        await update_flow(session, user.id, PLANS["pro"], flows[0].id, {"organism_yaml": "changed"})
    await ending
    async with live_database.sessions() as session:
        running = sa.select(number_running(user.id))
        assert await session.scalar(running) == 1
