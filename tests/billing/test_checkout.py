"""Checkout, the customer portal, and what a user sees of their subscription."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.billing.prices import PRO_LOOKUP_KEY
from bloxserver.clock import now
from bloxserver.models.tables import UserRecord
from tests.api.contract import API, assert_problem, covers
from tests.billing.billing_world import BillingWorld, event_of
from tests.stripe_server import DAY

CHECKOUT, PORTAL = f"{API}/billing/checkout", f"{API}/billing/portal"


@covers("billing.checkout", "billing.trial")
async def test_checkout_sells_pro_with_a_trial(world: BillingWorld) -> None:
    answer = await world.client.post(CHECKOUT, json={"plan": "pro"})
    assert answer.status_code == 200
    (customer,) = world.stripe.of_kind("customer")
    (session,) = world.stripe.of_kind("checkout.session")
    user = await world.user()
    assert answer.json() == {"url": session["url"]}
    assert user.stripe_customer_id == customer["id"] == session["customer"]
    assert customer["metadata"] == {"user_id": str(user.id)}
    assert session["client_reference_id"] == str(user.id)
    assert session["subscription_data"]["trial_period_days"] == 14
    assert session["mode"] == "subscription"
    prices = [world.stripe.objects[item["price"]]["lookup_key"] for item in session["line_items"]]
    assert prices == [PRO_LOOKUP_KEY, "bloxserver_pro_runs", "bloxserver_pro_storage"]
    assert ["quantity" in item for item in session["line_items"]] == [True, False, False]
    assert session["success_url"] == "http://localhost:3000/billing?checkout=success"


@covers("billing.checkout.repeated")
async def test_concurrent_checkouts_create_one_customer_and_one_session(world: BillingWorld) -> None:
    answers = await asyncio.gather(*(world.client.post(CHECKOUT) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["url"] for answer in answers}) == 1
    assert len(world.stripe.of_kind("customer")) == len(world.stripe.of_kind("checkout.session")) == 1


@pytest.mark.parametrize("second", ["same", "another", None])
async def test_repeated_checkout_gets_the_same_page_with_any_key(world: BillingWorld, second: str | None) -> None:
    first = await world.client.post(CHECKOUT, headers={"Idempotency-Key": "same"})
    headers = {} if second is None else {"Idempotency-Key": second}
    again = await world.client.post(CHECKOUT, json={"plan": "pro"}, headers=headers)
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert len(world.stripe.of_kind("customer")) == len(world.stripe.of_kind("checkout.session")) == 1


async def test_repeated_portal_gets_a_new_page_and_changes_nothing(world: BillingWorld) -> None:
    await world.customer()
    before = await world.billing()
    answers = [await world.client.post(PORTAL, headers={"Idempotency-Key": "same"}) for _ in range(2)]
    urls = [answer.json()["url"] for answer in answers]
    assert urls == [session["url"] for session in world.stripe.of_kind("billing_portal.session")]
    assert urls[0] != urls[1]
    assert len(world.stripe.of_kind("customer")) == 1
    assert await world.billing() == before


async def test_second_subscription_has_no_trial(world: BillingWorld) -> None:
    customer_id = await world.customer()
    trial = {"trial_start": 1, "trial_end": 2}
    made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, "canceled", **trial)
    await world.send(event_of(customer_id))
    del world.stripe.objects[made["id"]]
    await world.send(event_of(customer_id, 2))  # Stripe no longer lists old subscriptions
    assert (await world.billing())["trialAvailable"] is False
    assert (await world.client.post(CHECKOUT)).status_code == 200
    (session,) = world.stripe.of_kind("checkout.session")
    assert "trial_period_days" not in session["subscription_data"]


@covers("billing.checkout.subscribed")
@pytest.mark.parametrize("status", ["active", "trialing", "past_due", "unpaid", "paused"])
async def test_subscribed_user_is_sent_to_the_portal(world: BillingWorld, status: str) -> None:
    customer_id = await world.customer()
    world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, status)
    await world.send(event_of(customer_id))
    assert_problem(
        await world.client.post(CHECKOUT),
        409,
        "subscription_exists",
        "There is a subscription already. Change it in the customer portal.",
    )
    answer = await world.client.post(PORTAL)
    assert answer.json() == {"url": world.stripe.of_kind("billing_portal.session")[0]["url"]}


async def test_user_can_subscribe_again_after_the_end(world: BillingWorld) -> None:
    first = (await world.client.post(CHECKOUT)).json()["url"]
    customer_id = (await world.user()).stripe_customer_id or ""
    world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, "canceled")
    await world.send(event_of(customer_id))
    assert (await world.client.post(CHECKOUT)).json()["url"] != first


@covers("billing.portal")
async def test_portal_needs_a_customer(world: BillingWorld) -> None:
    message = "There is no subscription yet. Start a checkout."
    assert_problem(await world.client.post(PORTAL), 409, "no_customer", message)


@pytest.mark.parametrize("body", [{"plan": "enterprise"}, {"plan": 7}, {"plan": None}, [], "pro"])
async def test_other_plans_are_refused(world: BillingWorld, body: Any) -> None:
    assert (await world.client.post(CHECKOUT, json=body)).status_code == 422
    assert world.stripe.calls == []


async def test_prices_must_exist(world: BillingWorld) -> None:
    for price in world.stripe.of_kind("price"):
        del world.stripe.objects[price["id"]]
    answer = await world.client.post(CHECKOUT)
    assert (answer.status_code, answer.json()["code"]) == (503, "billing_not_set_up")


async def test_lost_answer_does_not_create_a_second_customer(world: BillingWorld) -> None:
    """The library repeats the request with the same idempotency key."""
    lost: list[str] = []

    def fault(call: Any) -> str | None:
        if call.method == "POST" and call.path not in lost:
            lost.append(call.path)
            return "lost"
        return None

    world.stripe.fault = fault
    assert (await world.client.post(CHECKOUT)).status_code == 200
    assert lost == ["/v1/customers", "/v1/checkout/sessions"]
    assert len(world.stripe.of_kind("customer")) == len(world.stripe.of_kind("checkout.session")) == 1


@covers("billing.disabled")
@pytest.mark.parametrize(("method", "path"), [("GET", f"{API}/billing"), ("POST", CHECKOUT), ("POST", PORTAL)])
async def test_routes_do_not_exist_without_billing(live_client: httpx.AsyncClient, method: str, path: str) -> None:
    assert_problem(await live_client.request(method, path), 404, "billing_disabled", "This server has no billing")


@covers("billing.get")
async def test_subscription_is_shown(world: BillingWorld) -> None:
    free = await world.billing()
    assert (free["plan"], free["planSource"], free["status"]) == ("free", "default", "active")
    assert (free["trialAvailable"], free["paymentProblem"], free["cancelAt"]) == (True, None, None)
    assert [price["usd"] for price in free["prices"]] == ["29.00", "0.50", "0.10"]
    customer_id = await world.customer()
    start = int(now().timestamp()) - 3 * DAY
    made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, "past_due", period_start=start)
    await world.send(event_of(customer_id))
    failed = await world.billing()
    assert (failed["plan"], failed["planSource"], failed["status"]) == ("pro", "subscription", "past_due")
    assert failed["paymentProblem"] == "payment_failed"
    assert failed["graceEndsAt"] > failed["currentPeriodStart"]
    made["status"], made["cancel_at_period_end"] = "active", True
    await world.send(event_of(customer_id, 2))
    cancelled = await world.billing()
    assert cancelled["cancelAt"] == cancelled["currentPeriodEnd"]
    assert (cancelled["status"], cancelled["paymentProblem"]) == ("canceling", None)
    async with world.database.transaction() as session:
        await session.execute(sa.update(UserRecord).values(tier="enterprise", tier_source="operator"))
    assert (await world.billing())["planSource"] == "operator"
