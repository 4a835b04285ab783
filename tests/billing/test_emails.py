"""Emails about a subscription: each change causes its emails once, in whatever order and number events arrive."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from bloxserver.account_emails.kinds import SAMPLES, EmailKind
from bloxserver.account_emails.rendering import Templates
from bloxserver.billing.emails import MAX_FLOWS
from bloxserver.billing.prices import ENTERPRISE_LOOKUP_KEY, PRO_LOOKUP_KEY
from bloxserver.billing.state import GRACE
from bloxserver.clock import iso_utc
from bloxserver.models.enums import FlowStatus, Tier, TierSource
from bloxserver.models.tables import AccountEmailRecord, UserRecord
from bloxserver.services.account_deletions import delete_account
from tests.billing.billing_world import BillingWorld, event_of
from tests.clerk import override_settings
from tests.factories import create_flow
from tests.stripe_server import DAY, Call


def text_of(seconds: int) -> str:
    return iso_utc(datetime.fromtimestamp(seconds, UTC))


async def emails(world: BillingWorld) -> Sequence[AccountEmailRecord]:
    async with world.database.sessions() as session:
        return (await session.scalars(sa.select(AccountEmailRecord).order_by(AccountEmailRecord.id))).all()


async def kinds(world: BillingWorld) -> list[str]:
    return [email.kind for email in await emails(world)]


class Subscription:
    """A subscription at Stripe. After each change, its event is received."""

    def __init__(self, world: BillingWorld, customer_id: str, made: dict[str, Any]) -> None:
        self.world = world
        self.customer_id = customer_id
        self.made = made
        self._events = 0

    @property
    def start(self) -> int:
        start: int = self.made["items"]["data"][0]["current_period_start"]
        return start

    @property
    def end(self) -> int:
        end: int = self.made["items"]["data"][0]["current_period_end"]
        return end

    async def become(self, status: str, **values: Any) -> None:
        period = {name: values.pop(name) for name in ("current_period_start",) if name in values}
        self.made["items"]["data"][0].update(period)
        self.made.update(values, status=status)
        self._events += 1
        assert (await self.world.send(event_of(self.customer_id, self._events))).status_code == 200


@pytest.fixture
async def subscription(world: BillingWorld) -> Subscription:
    customer_id = await world.customer()
    trial = {"trial_start": int(time.time()), "trial_end": int(time.time()) + 14 * DAY}
    return Subscription(world, customer_id, world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY, "incomplete", **trial))


STARTED, CONVERTED = "trial_started", "trial_converted"
FAILED, LOST, CANCELED, FREE = (
    "payment_failed_soft",
    "downgraded_payment_failed",
    "subscription_canceled",
    "downgraded_to_free",
)
OVERDUE = {"current_period_start": int(time.time()) - GRACE.days * DAY - 1}
AT_END = {"cancel_at_period_end": True}
Change = tuple[str, dict[str, Any]]
JOURNEYS: list[tuple[list[Change], list[str]]] = [
    ([("incomplete", {}), ("incomplete_expired", {})], []),
    ([("trialing", {}), ("trialing", {}), ("active", {}), ("active", {})], [STARTED, CONVERTED]),
    ([("trialing", {}), ("past_due", {}), ("active", {})], [STARTED, FAILED]),
    ([("trialing", {}), ("canceled", {})], [STARTED, CANCELED, FREE]),
    ([("trialing", AT_END), ("canceled", AT_END)], [STARTED, CANCELED, FREE]),
    ([("active", {}), ("past_due", {}), ("active", {}), ("past_due", {})], [FAILED]),
    ([("active", {}), ("past_due", {}), ("past_due", OVERDUE), ("unpaid", OVERDUE)], [FAILED, LOST]),
    ([("active", {}), ("past_due", OVERDUE)], [LOST]),
    ([("active", {}), ("past_due", {}), ("unpaid", {}), ("active", {})], [FAILED, LOST]),
    ([("active", {}), ("past_due", {}), ("canceled", {})], [FAILED, CANCELED, LOST]),
    ([("active", {}), ("unpaid", {}), ("canceled", {})], [LOST, CANCELED]),
    ([("active", {}), ("active", AT_END), ("active", AT_END), ("canceled", AT_END)], [CANCELED, FREE]),
    ([("active", AT_END), ("active", {"cancel_at_period_end": False}), ("active", AT_END)], [CANCELED]),
    ([("active", AT_END), ("active", AT_END | {"cancel_at": int(time.time()) + DAY})], [CANCELED, CANCELED]),
    ([("active", {}), ("paused", {}), ("active", {}), ("paused", {})], [FREE]),
]
"""Changes of a subscription, and the emails that they cause."""


@pytest.mark.parametrize(("changes", "expected"), JOURNEYS)
async def test_changes_cause_their_emails_once(
    world: BillingWorld, subscription: Subscription, changes: list[Change], expected: list[str]
) -> None:
    for status, values in changes:
        await subscription.become(status, **values)
    found = await emails(world)
    assert [email.kind for email in found] == expected
    templates = Templates()
    for email in found:
        assert templates.render(EmailKind(email.kind), email.data, name=None, billing_url=None).subject
        names = [sample.keys() for sample in SAMPLES[EmailKind(email.kind)]]
        assert email.data.keys() in names


async def test_keys_and_values(world: BillingWorld, subscription: Subscription) -> None:
    made = subscription.made
    await subscription.become("trialing")
    await subscription.become("past_due", trial_end=None)
    await subscription.become("active", cancel_at=made["created"] + 20 * DAY)
    start, ends_at = text_of(subscription.start), text_of(made["created"] + 20 * DAY)
    grace = text_of(subscription.start + GRACE.days * DAY)
    assert [(email.event_key, email.data) for email in await emails(world)] == [
        (f"trial_started:{made['id']}", {"plan": "pro", "trial_ends_at": text_of(made["trial_start"] + 14 * DAY)}),
        (f"payment_failed_soft:{made['id']}:{start}", {"plan": "pro", "grace_ends_at": grace}),
        (f"subscription_canceled:{made['id']}:{ends_at}", {"plan": "pro", "ends_at": ends_at}),
    ]


async def test_next_period_has_a_failed_payment_of_its_own(world: BillingWorld, subscription: Subscription) -> None:
    await subscription.become("past_due")
    await subscription.become("active")
    for _ in range(2):
        await subscription.become("past_due", current_period_start=subscription.start + DAY // 4)
    assert await kinds(world) == [FAILED] * 3


async def test_next_subscription_has_emails_of_its_own(world: BillingWorld, subscription: Subscription) -> None:
    await subscription.become("active")
    await subscription.become("canceled")
    subscription.made = world.stripe.subscribe(subscription.customer_id, PRO_LOOKUP_KEY)
    await subscription.become("active")
    await subscription.become("canceled")
    assert await kinds(world) == [CANCELED, FREE] * 2


async def test_downgrade_lists_flows(world: BillingWorld, subscription: Subscription) -> None:
    await subscription.become("active")
    user = await world.user()
    async with world.database.sessions() as session:
        for number in range(MAX_FLOWS + 2):
            await create_flow(session, user, name=f"R{number}", status=FlowStatus.RUNNING)
        for status in (FlowStatus.STOPPING, FlowStatus.STOPPED, FlowStatus.ERROR):
            await create_flow(session, user, name=status.value, status=status)
    await subscription.become("unpaid")
    [email] = await emails(world)
    stopped = {*email.data.pop("stopped")}
    assert email.data == {
        "plan": "free",
        "previous_plan": "pro",
        "running": ["R0"],
        "running_number": 1,
        "stopped_number": MAX_FLOWS + 1,
    }
    assert len(stopped) == MAX_FLOWS
    assert stopped < {f"R{number}" for number in range(1, MAX_FLOWS + 2)}


async def test_plan_of_the_subscription_is_named(world: BillingWorld, subscription: Subscription) -> None:
    subscription.made["items"]["data"][0]["price"]["lookup_key"] = ENTERPRISE_LOOKUP_KEY
    await subscription.become("past_due")
    await subscription.become("unpaid")
    assert [email.data.get("previous_plan", email.data["plan"]) for email in await emails(world)] == ["enterprise"] * 2


async def test_default_plan_is_no_downgrade(world: BillingWorld, subscription: Subscription) -> None:
    with override_settings(DEFAULT_TIER="pro"):
        await subscription.become("active")
        await subscription.become("canceled")
    assert await kinds(world) == [CANCELED]


async def test_plan_that_an_operator_set_is_not_lost(world: BillingWorld, subscription: Subscription) -> None:
    async with world.database.transaction() as session:
        values = {"tier": Tier.ENTERPRISE, "tier_source": TierSource.OPERATOR}
        await session.execute(sa.update(UserRecord).values(values))
    await subscription.become("active")
    await subscription.become("past_due")
    await subscription.become("unpaid")
    await subscription.become("canceled")
    found = await emails(world)
    assert [(email.kind, email.data["plan"]) for email in found] == [(FAILED, "pro"), (CANCELED, "pro")]


async def test_deleted_user_gets_none(world: BillingWorld, subscription: Subscription) -> None:
    await subscription.become("active")
    async with world.database.transaction() as session:
        await delete_account(session, (await world.user()).id)
    await subscription.become("canceled")
    assert await kinds(world) == []


async def test_state_that_was_read_earlier_causes_no_email(world: BillingWorld, subscription: Subscription) -> None:
    """The first request to Stripe gets its answer after the second, with the state before."""
    await subscription.become("active")
    release, arrived = asyncio.Event(), asyncio.Event()
    calls = len(world.stripe.calls)

    def hold(call: Call) -> asyncio.Event | None:
        arrived.set()
        return release if len(world.stripe.calls) == calls + 1 else None

    world.stripe.hold = hold
    subscription.made["status"] = "unpaid"
    first = asyncio.create_task(world.send(event_of(subscription.customer_id, "late")))
    await arrived.wait()
    await subscription.become("active")
    release.set()
    assert (await first).status_code == 200
    assert await kinds(world) == []


def expected_keys(subscription: Subscription, before: tuple[str, bool], after: tuple[str, bool]) -> set[str]:
    """The keys of the emails of a change between pairs of a status and whether it is cancelled, by the documents."""
    number, start, live = subscription.made["id"], text_of(subscription.start), ("active", "trialing", "past_due")
    keys = set()
    if after[0] == "trialing" != before[0]:
        keys.add(f"{STARTED}:{number}")
    if (before[0], after[0]) == ("trialing", "active"):
        keys.add(f"{CONVERTED}:{number}")
    if after[0] == "past_due" != before[0]:
        keys.add(f"{FAILED}:{number}:{start}")
    if before[0] in live and after[0] not in live:
        unpaid = after[0] == "unpaid" or before[0] == "past_due"
        keys.add(f"{LOST if unpaid else FREE}:{number}:{start}")
    was, is_scheduled = (state[1] and state[0] != "canceled" for state in (before, after))
    if is_scheduled and not was:
        keys.add(f"{CANCELED}:{number}:{text_of(subscription.end)}")
    if after[0] == "canceled" != before[0] and not was:
        keys.add(f"{CANCELED}:{number}:ended")
    return keys


@pytest.mark.parametrize("seed", range(4))
async def test_shuffled_histories_cause_each_email_once(
    world: BillingWorld, subscription: Subscription, seed: int
) -> None:
    """Events of each change are repeated, concurrent, and mixed with those of changes before."""
    choose = random.Random(seed)  # noqa: S311
    expected: set[str] = set()
    state = ("canceled", False)
    old = [event_of(subscription.customer_id, f"{seed}-old")]
    subscription.made["status"] = "canceled"
    await world.send(old[0])
    for change in range(25):
        changed = choose.choice(["active", "trialing", "past_due", "unpaid", "canceled"]), choose.random() < 0.3
        subscription.made["status"], subscription.made["cancel_at_period_end"] = changed
        events = [event_of(subscription.customer_id, f"{seed}-{change}-{number}") for number in range(3)]
        sent = choose.sample([*events, *events, *choose.sample(old, min(3, len(old)))], k=len(events) * 2)
        answers = await asyncio.gather(*(world.send(event) for event in [events[0], *sent]))
        assert {answer.status_code for answer in answers} <= {200, 503}
        assert (await world.send(event_of(subscription.customer_id, f"{seed}-{change}-last"))).status_code == 200
        old += events
        expected |= expected_keys(subscription, state, changed)
        state = changed
    found = [email.event_key for email in await emails(world)]
    assert sorted(found) == sorted(expected)
    assert len(expected) > 5
