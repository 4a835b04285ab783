"""The limit of runs of a subscriber who does not pay for overage, in each way to start a run."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from bloxserver.billing.prices import PRO_LOOKUP_KEY
from bloxserver.models.enums import FlowStatus
from bloxserver.models.tables import FlowRecord, UsageRecord, UserRecord
from tests import factories
from tests.api.contract import API
from tests.billing.billing_world import BillingWorld, event_of

LIMIT = 3


@pytest.mark.parametrize(
    ("status", "values", "is_limited"),
    [
        ("trialing", {"trial_start": 1, "trial_end": 2**31}, True),
        ("past_due", {}, True),
        ("active", {}, False),
        ("active", {"cancel_at_period_end": True}, False),
    ],
)
async def test_overage_needs_a_paid_subscription(
    world: BillingWorld, status: str, values: dict[str, object], is_limited: bool
) -> None:
    customer_id = await world.customer()
    world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, status, **values)
    await world.send(event_of(customer_id))
    user = await world.user()
    async with world.database.sessions() as session:
        await session.execute(sa.update(UserRecord).values(limits={"runs": LIMIT}))
        flow = await factories.create_flow(session, user, status=FlowStatus.RUNNING)
        trigger = await factories.create_trigger(session, flow)
    run, webhook = f"{API}/flows/{flow.id}/executions/run", f"/webhooks/{trigger.webhook_token}"
    statuses = [(await world.client.post(path)).status_code for path in (run, webhook, run, webhook, run)]
    assert statuses == ([201, 200, 201, 403, 403] if is_limited else [201, 200, 201, 200, 201])
    async with world.database.sessions() as session:
        counted = await session.scalar(sa.select(sa.func.sum(UsageRecord.workflow_runs)))
        periods = set(await session.scalars(sa.select(UsageRecord.period_start)))
        assert await session.scalar(sa.select(sa.func.count()).select_from(FlowRecord)) == 1
    assert counted == (LIMIT if is_limited else 5)
    assert periods == {(await world.user()).current_period_start}


async def test_error_has_the_address_at_which_the_user_can_upgrade(world: BillingWorld) -> None:
    user = await world.user()
    async with world.database.sessions() as session:
        await session.execute(sa.update(UserRecord).values(limits={"runs": 0}))
        flow = await factories.create_flow(session, user, status=FlowStatus.RUNNING)
    answer = await world.client.post(f"{API}/flows/{flow.id}/executions/run")
    assert (answer.status_code, answer.json()["code"]) == (403, "run_limit_reached")
    assert answer.json()["details"]["upgradeUrl"] == "http://localhost:3000/billing"
