"""Subscriptions of deleted users are cancelled at Stripe before their rows are deleted."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from bloxserver.billing.cancellations import cancel_subscriptions_of_deleted_users
from bloxserver.billing.prices import PRO_LOOKUP_KEY
from bloxserver.engine.background.deletions import Deletions
from bloxserver.models.tables import UserRecord
from bloxserver.services.account_deletions import delete_account
from tests.billing.billing_world import BillingWorld, event_of


async def subscribed(world: BillingWorld) -> dict[str, Any]:
    customer_id = await world.customer()
    made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY)
    await world.send(event_of(customer_id))
    return made


async def delete(world: BillingWorld) -> None:
    user_id = (await world.user()).id
    async with world.database.transaction() as session:
        assert await delete_account(session, user_id)


async def users(world: BillingWorld) -> int:
    async with world.database.sessions() as session:
        return await session.scalar(sa.select(sa.func.count()).select_from(UserRecord)) or 0


async def test_subscription_of_a_deleted_user_is_cancelled(world: BillingWorld) -> None:
    made = await subscribed(world)
    await cancel_subscriptions_of_deleted_users(world.database)
    assert made["status"] == "active"
    await delete(world)
    assert (await Deletions(world.database).finish()).users == 1
    assert made["status"] == "canceled"
    assert await users(world) == 0


async def test_row_remains_while_stripe_cannot_cancel(world: BillingWorld) -> None:
    made = await subscribed(world)
    await delete(world)
    world.stripe.fault = lambda call: "500"
    assert (await Deletions(world.database).finish()).users == 0
    assert (await world.user()).stripe_subscription_id == made["id"]
    world.stripe.fault = lambda call: None
    assert (await Deletions(world.database).finish()).users == 1
    assert made["status"] == "canceled"


async def test_subscription_that_does_not_exist_is_no_obstacle(world: BillingWorld) -> None:
    made = await subscribed(world)
    del world.stripe.objects[made["id"]]
    await delete(world)
    assert (await Deletions(world.database).finish()).users == 1
    assert await users(world) == 0
