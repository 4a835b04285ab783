"""Which periods are billed."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from bloxserver.models.enums import Tier, TierSource
from bloxserver.models.tables import UserRecord
from tests.billing.metering_world import MeteringWorld, days_ago, seconds_ago, time_of
from tests.stripe_server import DAY


@pytest.mark.parametrize(
    ("status", "values", "is_billed"),
    [
        ("active", {}, True),
        ("active", {"cancel_at_period_end": True}, True),
        ("trialing", {}, False),
        ("trialing", {"cancel_at_period_end": True}, False),
        ("past_due", {}, False),
        ("unpaid", {}, False),
        ("paused", {}, False),
        ("incomplete", {}, False),
        ("canceled", {}, False),
    ],
)
async def test_runs_are_reported_while_the_subscription_is_active(
    metering: MeteringWorld, status: str, values: dict[str, bool], is_billed: bool
) -> None:
    subscriber = await metering.subscriber(status, **values)
    await metering.accept(subscriber, 3)
    await metering.report()
    assert await metering.counted(subscriber) == (3, 3 if is_billed else 0)
    assert metering.at_stripe(subscriber) == (3 if is_billed else 0)


async def test_runs_before_the_subscription_are_not_reported(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber("incomplete")
    await metering.accept(subscriber, 5)
    await metering.change(subscriber, "active", current_period_start=seconds_ago(60))
    await metering.accept(subscriber, 2)
    await metering.report()
    assert (await metering.counted(subscriber), metering.at_stripe(subscriber)) == ((7, 2), 2)


async def test_runs_of_a_trial_are_not_reported_and_later_ones_are(metering: MeteringWorld) -> None:
    end = seconds_ago(120)
    subscriber = await metering.subscriber("trialing", period_start=end - 14 * DAY, period_end=end, trial_end=end)
    await metering.accept(subscriber, 4, await metering.period(subscriber, time_of(end - 1)))
    # The event of the first payment has not arrived: the runs count for the period that it will announce.
    await metering.accept(subscriber, 3)
    await metering.report()
    assert metering.at_stripe(subscriber) == 0
    await metering.change(subscriber, "active", current_period_start=end, current_period_end=end + 30 * DAY)
    await metering.accept(subscriber, 2)
    await metering.report()
    assert (await metering.counted(subscriber), metering.at_stripe(subscriber)) == ((9, 5), 5)


async def test_period_that_is_not_paid_is_reported_once_it_is(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 2)
    await metering.report()
    for status in ("past_due", "unpaid"):
        await metering.change(subscriber, status)
        await metering.accept(subscriber, 3, await metering.period(subscriber))
        await metering.report()
        assert metering.at_stripe(subscriber) == 2
    await metering.change(subscriber, "active")
    await metering.report()
    # While it was unpaid, runs counted for the calendar month of the free plan.
    assert metering.at_stripe(subscriber) == 5


async def test_past_due_period_does_not_stop_late_reports_of_the_last_one(metering: MeteringWorld) -> None:
    end = seconds_ago(3_600)
    subscriber = await metering.subscriber(period_start=end - 30 * DAY, period_end=end)
    last = await metering.period(subscriber, time_of(end - 1))
    await metering.change(subscriber, "past_due", current_period_start=end, current_period_end=end + 30 * DAY)
    await metering.accept(subscriber, 2, last)
    await metering.accept(subscriber, 3)
    await metering.report()
    assert metering.at_stripe(subscriber) == metering.at_stripe(subscriber, last) == 2


async def test_period_stays_billed_after_the_subscription_has_ended(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 2)
    await metering.change(subscriber, "canceled")
    await metering.accept(subscriber, 7)
    await metering.report()
    assert (await metering.counted(subscriber), metering.at_stripe(subscriber)) == ((9, 2), 2)


async def test_plan_of_an_operator_is_not_reported(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 2)
    async with metering.database.transaction() as session:
        await session.execute(sa.update(UserRecord).values(tier=Tier.PRO, tier_source=TierSource.OPERATOR))
    await metering.sync(subscriber)
    await metering.report()
    assert metering.at_stripe(subscriber) == 0


async def test_period_ends_when_the_next_one_begins(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber(period_start=days_ago(10), period_end=days_ago(-20))
    start = seconds_ago(3_600)
    await metering.change(subscriber, current_period_start=start, current_period_end=start + 30 * DAY)
    assert [is_billed for _, is_billed in await metering.billed(subscriber)] == [True, True]
    late = await metering.period(subscriber, time_of(days_ago(5)))
    assert late.start != time_of(start)
    first, _ = await metering.billed(subscriber)
    await metering.accept(subscriber, 2, late.__class__(first[0], time_of(start)))
    await metering.report()
    [report] = await metering.reports()
    assert report.timestamp < time_of(start)
