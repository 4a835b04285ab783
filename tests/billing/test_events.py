"""Events of Stripe: signatures, repetition, order, and failures of Stripe."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.billing.events import ALERTS, SYNCED
from bloxserver.billing.prices import PRO_LOOKUP_KEY
from bloxserver.models.database import Database
from bloxserver.models.enums import BillingStatus, Tier, TierSource
from bloxserver.models.tables import AuditEventRecord, StripeEventRecord, UserRecord
from tests.api.contract import assert_problem, covers
from tests.billing.billing_world import EVENT_TYPE, BillingWorld, event_of, signature_of
from tests.clerk import override_settings
from tests.stripe_server import Call

INVALID = (400, "invalid_signature", "The signature of the event is missing or invalid")


async def events(database: Database) -> list[StripeEventRecord]:
    async with database.sessions() as session:
        return list(await session.scalars(sa.select(StripeEventRecord).order_by(StripeEventRecord.event_id)))


@covers("billing.webhook")
@pytest.mark.parametrize("kind", SYNCED)
async def test_event_stores_the_state_that_stripe_returns(world: BillingWorld, kind: str) -> None:
    customer_id = await world.customer()
    made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY)
    event = event_of(customer_id, kind=kind)
    if kind in ("customer.updated", "customer.deleted"):
        event["data"]["object"] = {"object": "customer", "id": customer_id}
    answer = await world.send(event)
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    user = await world.user()
    assert (user.tier, user.tier_source, user.billing_status) == (Tier.PRO, TierSource.STRIPE, BillingStatus.ACTIVE)
    assert user.stripe_subscription_id == made["id"]
    (stored,) = await events(world.database)
    assert (stored.event_id, stored.event_type, stored.error_message) == ("evt_1", kind, None)
    assert stored.processed_at is not None


@pytest.mark.parametrize("kind", [*ALERTS, "account.updated", "a.new.type"])
async def test_other_events_read_nothing(world: BillingWorld, kind: str) -> None:
    assert (await world.send(event_of(await world.customer(), kind=kind))).status_code == 200
    assert world.stripe.calls == []
    assert [stored.processed_at is not None for stored in await events(world.database)] == [True]


@pytest.mark.parametrize("customer_id", [None, "cus_unknown", "", 7, "x" * 300, "cus_\0"])
async def test_event_of_an_unknown_customer_changes_nothing(world: BillingWorld, customer_id: Any) -> None:
    assert (await world.send(event_of(customer_id))).status_code == 200
    assert (await world.user()).tier == Tier.FREE


class TestSignature:
    async def test_unsigned_events_are_refused(self, world: BillingWorld) -> None:
        body = json.dumps(event_of(await world.customer())).encode()
        late, early = (signature_of(body, seconds=time.time() + seconds) for seconds in (-400, 400))
        junk: list[dict[str, Any]] = [{}, {"Stripe-Signature": ""}, {"Stripe-Signature": b"t=1,v1=\xff"}]
        junk += [{"Stripe-Signature": value} for value in (late, early, signature_of(body + b" "), "v1=00,t=x")]
        for headers in junk:
            assert_problem(await world.client.post("/webhooks/stripe", content=body, headers=headers), *INVALID)
        assert await events(world.database) == []
        assert world.stripe.calls == []

    async def test_two_secrets_are_valid_during_a_rotation(self, world: BillingWorld) -> None:
        event = event_of(None)
        assert_problem(await world.send(event, secret="whsec_next-secret"), *INVALID)
        with override_settings(STRIPE_WEBHOOK_SECRET="whsec_next-secret, whsec_canary-secret-8d20"):
            assert (await world.send(event, secret="whsec_next-secret")).status_code == 200
            assert (await world.send(event)).status_code == 200

    @pytest.mark.parametrize(
        "body",
        [
            *(b"", b"\xff", b"[]", b"null", b"7", b"{}", b'{"id": 1, "type": "x"}', b'{"id": "evt", "type": ""}'),
            *(b'{"id": "%s", "type": "x"}' % (b"x" * 300), b"[" * 50_000, b'{"id": "a\\u0000", "type": "x"}'),
            b'{"id": "evt", "type": "x", "livemode": false, "more": "%s"}' % (b"x" * 300_000),
        ],
        ids=lambda body: body[:20].decode(errors="replace"),
    )
    async def test_signed_junk_is_refused(self, world: BillingWorld, body: bytes) -> None:
        headers = {"Stripe-Signature": signature_of(body)}
        answer = await world.client.post("/webhooks/stripe", content=body, headers=headers)
        assert_problem(answer, 400, "invalid_event", "The body is not an event of Stripe")

    @pytest.mark.parametrize("data", [None, [], {}, {"object": None}, {"object": []}, {"object": {"customer": {}}}])
    async def test_event_without_a_customer_is_accepted(self, world: BillingWorld, data: Any) -> None:
        assert (await world.send(event_of(None) | {"data": data})).status_code == 200

    async def test_events_of_the_other_mode_are_refused(self, world: BillingWorld) -> None:
        answer = await world.send(event_of(None) | {"livemode": True})
        assert_problem(answer, 400, "wrong_mode", "The event is of the other mode, live or test")

    @covers("billing.disabled")
    async def test_route_does_not_exist_without_billing(self, live_client: httpx.AsyncClient) -> None:
        answer = await live_client.post("/webhooks/stripe", content=b"{}")
        assert_problem(answer, 404, "webhook_not_found", "Webhook not found")


class TestFailures:
    @pytest.mark.parametrize("fault", ["500", "429"])
    async def test_failure_of_stripe_is_503_and_the_event_is_processed_later(
        self, world: BillingWorld, fault: str
    ) -> None:
        customer_id = await world.customer()
        world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY)
        world.stripe.fault = lambda call: fault
        answer = await world.send(event_of(customer_id))
        assert (answer.status_code, answer.json()["code"]) == (503, "stripe_unavailable")
        (stored,) = await events(world.database)
        assert (stored.processed_at, stored.error_message) == (None, "stripe_unavailable")
        world.stripe.fault = lambda call: None
        assert (await world.send(event_of(customer_id))).status_code == 200
        (stored,) = await events(world.database)
        assert (stored.processed_at is None, stored.error_message) == (False, None)
        assert (await world.user()).tier == Tier.PRO

    async def test_unknown_status_keeps_the_stored_state(self, world: BillingWorld) -> None:
        customer_id = await world.customer()
        made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY)
        await world.send(event_of(customer_id))
        made["status"] = "suspended"
        answer = await world.send(event_of(customer_id, 2))
        assert (answer.status_code, answer.json()["code"]) == (503, "unknown_subscription_status")
        assert (await world.user()).tier == Tier.PRO

    async def test_no_secret_is_logged(self, world: BillingWorld, capsys: pytest.CaptureFixture[str]) -> None:
        world.stripe.fault = lambda call: "500"
        await world.send(event_of(await world.customer()))
        await world.client.post("/api/v1/billing/checkout")
        assert "canary" not in "".join(capsys.readouterr())


async def test_repeated_event_is_processed_once(world: BillingWorld) -> None:
    customer_id = await world.customer()
    for _ in range(3):
        assert (await world.send(event_of(customer_id))).status_code == 200
    assert len(world.stripe.calls) == 1


@pytest.mark.parametrize("seed", range(4))
async def test_shuffled_histories_end_in_the_state_of_stripe(world: BillingWorld, seed: int) -> None:
    """Events are repeated, reordered and concurrent. Each is sent at the earliest after its change."""
    choose = random.Random(seed)  # noqa: S311
    customer_id = await world.customer()
    made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY)
    for history in range(15):
        waiting: list[asyncio.Task[httpx.Response]] = []
        for change in range(choose.randint(1, 6)):
            made["status"] = choose.choice(["active", "trialing", "unpaid", "canceled", "incomplete"])
            made["cancel_at_period_end"] = choose.random() < 0.3
            for _ in range(choose.randint(1, 3)):
                event = event_of(customer_id, f"{history}-{change}")
                waiting.insert(choose.randint(0, len(waiting)), asyncio.create_task(world.send(event)))
            if choose.random() < 0.5:
                await choose.choice(waiting)
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} <= {200, 503}
        await world.send(event_of(customer_id, f"{history}-last"))
        user = await world.user()
        is_pro = made["status"] in ("active", "trialing")
        assert (user.stripe_status, user.tier) == (made["status"], Tier.PRO if is_pro else Tier.FREE)


async def test_state_that_was_read_earlier_does_not_replace_a_later_one(world: BillingWorld) -> None:
    """The first request to Stripe gets its answer after the second, with the state before."""
    customer_id = await world.customer()
    made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, "unpaid")
    release, arrived = asyncio.Event(), asyncio.Event()

    def hold(call: Call) -> asyncio.Event | None:
        arrived.set()
        return release if len(world.stripe.calls) == 1 else None

    world.stripe.hold = hold
    first = asyncio.create_task(world.send(event_of(customer_id, 1)))
    await arrived.wait()
    made["status"] = "active"
    assert (await world.send(event_of(customer_id, 2))).status_code == 200
    release.set()
    assert (await first).status_code == 200
    assert (await world.user()).stripe_status == "active"


@covers("billing.operator")
async def test_tier_that_an_operator_set_is_kept(world: BillingWorld) -> None:
    customer_id = await world.customer()
    async with world.database.transaction() as session:
        values = {"tier": Tier.ENTERPRISE, "tier_source": TierSource.OPERATOR}
        await session.execute(sa.update(UserRecord).values(values))
    made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, "trialing")
    for number, status in enumerate(["trialing", "canceled"]):
        made["status"] = status
        await world.send(event_of(customer_id, number))
        user = await world.user()
        assert (user.tier, user.stripe_status) == (Tier.ENTERPRISE, status)


async def test_change_of_the_plan_is_audited(world: BillingWorld) -> None:
    customer_id = await world.customer()
    made = world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY)
    for number, status in enumerate(["active", "active", "canceled"]):
        made["status"] = status
        await world.send(event_of(customer_id, number))
    async with world.database.sessions() as session:
        wanted = sa.select(AuditEventRecord).where(AuditEventRecord.action == "user.tier_changed")
        found = (await session.scalars(wanted.order_by(AuditEventRecord.id))).all()
    pro = {"tier": "pro", "billingStatus": "active"}
    assert [(event.actor, event.actor_id, event.before, event.after) for event in found] == [
        ("billing", "stripe", {"tier": "free"}, {"tier": "pro"}),
        ("billing", "stripe", pro, {"tier": "free", "billingStatus": "canceled"}),
    ]


def test_type_of_examples_is_synced() -> None:
    assert EVENT_TYPE in SYNCED
