"""The included storage is a hard limit for a subscriber who does not pay for overage."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from bloxserver.billing.prices import PRO_LOOKUP_KEY
from bloxserver.clock import now
from bloxserver.models.enums import FlowStatus
from bloxserver.models.tables import ExecutionRecord, StorageSampleRecord, StoredBytesRecord, UserRecord
from bloxserver.plans import PLANS
from bloxserver.services.key_values import set_value
from tests import factories
from tests.api.contract import API
from tests.billing.billing_world import BillingWorld, event_of

INCLUDED = 10**10
TRIAL = {"trial_start": 1, "trial_end": 2**31}


async def subscribe(world: BillingWorld, status: str, **values: object) -> UserRecord:
    customer_id = await world.customer()
    world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, status, **values)
    await world.send(event_of(customer_id))
    return await world.user()


async def store(world: BillingWorld, user: UserRecord, number: int) -> None:
    async with world.database.transaction() as session:
        session.add(StoredBytesRecord(user_id=user.id, source="tests", slot=0, bytes=number))


@pytest.mark.parametrize(
    ("status", "values", "stored", "is_limited"),
    [
        ("trialing", TRIAL, INCLUDED, True),
        ("trialing", TRIAL, INCLUDED - 10_000, False),
        ("past_due", {}, INCLUDED, True),
        ("active", {}, INCLUDED, False),
        ("active", {}, 50 * 2**30, True),
        ("active", {"cancel_at_period_end": True}, INCLUDED, False),
    ],
)
async def test_storage_beyond_the_included_one_needs_a_paid_subscription(
    world: BillingWorld, status: str, values: dict[str, object], stored: int, is_limited: bool
) -> None:
    user = await subscribe(world, status, **values)
    async with world.database.sessions() as session:
        flow = await factories.create_flow(session, user, status=FlowStatus.RUNNING)
        trigger = await factories.create_trigger(session, flow)
    await store(world, user, stored)
    paths = f"{API}/flows/{flow.id}/executions/run", f"/webhooks/{trigger.webhook_token}"
    answers = [await world.client.post(path) for path in paths]
    assert [answer.status_code for answer in answers] == ([403, 403] if is_limited else [201, 200])
    if is_limited:
        limit = PLANS["pro"].stored_bytes if status == "active" else INCLUDED
        assert {answer.json()["code"] for answer in answers} == {"stored_bytes_limit_reached"}
        assert {answer.json()["details"]["limit"] for answer in answers} == {limit}


async def test_user_who_stores_more_when_a_payment_fails_keeps_it(world: BillingWorld) -> None:
    user = await subscribe(world, "past_due")
    async with world.database.sessions() as session:
        flow = await factories.create_flow(session, user, status=FlowStatus.RUNNING)
        execution = await factories.create_execution(session, flow)
    await store(world, user, 3 * INCLUDED)
    usage = (await world.client.get(f"{API}/usage")).json()
    assert usage["storedBytes"] > usage["storedBytesLimit"] == usage["includedStoredBytes"] == INCLUDED
    assert (await world.client.get(f"{API}/flows/{flow.id}/executions/{execution.id}")).status_code == 200
    async with world.database.transaction() as session:  # a step of an execution that was accepted before
        await set_value(session, flow.id, "key", "value", "step")
    async with world.database.sessions() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(ExecutionRecord)) == 1


async def test_overage_of_the_period_is_shown(world: BillingWorld) -> None:
    user = await subscribe(world, "active")
    usage = (await world.client.get(f"{API}/usage")).json()
    assert (usage["storageOverage"], usage["estimatedOverage"], usage["includedStoredBytes"]) == (0, 0, INCLUDED)
    assert usage["storedBytesLimit"] == PLANS["pro"].stored_bytes
    async with world.database.transaction() as session:
        values = {"period_start": user.current_period_start, "bytes": 1, "billed_megabytes": 45_000}
        session.add(StorageSampleRecord(user_id=user.id, day=now().date(), **values))
    usage = (await world.client.get(f"{API}/usage")).json()
    assert (usage["storageOverage"], usage["estimatedOverage"]) == (0.15, 0)
