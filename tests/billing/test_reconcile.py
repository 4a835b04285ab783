"""Counted runs are compared with Stripe's sums, and what Stripe lacks is sent once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from bloxserver.billing.reconcile import INTERVAL, RETRY, Reconciler, claim_periods
from bloxserver.clock import now
from bloxserver.errors import Unavailable
from bloxserver.models.enums import BillingStatus, Tier
from bloxserver.models.tables import BillingPeriodRecord, MeterReportRecord, UsageRecord, UserRecord
from tests.billing.metering_world import MeteringWorld, Subscriber, seconds_ago
from tests.stripe_server import DAY

DAY_AGO = timedelta(hours=25)


async def reports_at_minutes(metering: MeteringWorld, subscriber: Subscriber, *values: int) -> None:
    """Reports of these numbers of runs, in different minutes, that were sent."""
    for minute, value in enumerate(values):
        await metering.accept(subscriber, value)
        await metering.cut()
        newest = sa.select(MeterReportRecord.id).order_by(MeterReportRecord.created_at.desc()).limit(1)
        async with metering.database.transaction() as session:
            moment = now() - timedelta(minutes=60 - 2 * minute)
            changed = sa.update(MeterReportRecord).where(MeterReportRecord.id == newest.scalar_subquery())
            await session.execute(changed.values(timestamp=moment))
    await metering.send()
    assert metering.at_stripe(subscriber) == sum(values)


def lose(metering: MeteringWorld, *values: int, forgotten: bool = True) -> None:
    """Let Stripe have accepted and dropped the events with these values."""
    lost = [event for event in metering.server.meter_events if int(event["payload"]["value"]) in values]
    for event in lost:
        metering.server.meter_events.remove(event)
        if forgotten:
            metering.server.identifiers.remove(event["identifier"])


async def change_report(metering: MeteringWorld, value: int, **values: Any) -> None:
    async with metering.database.transaction() as session:
        changed = sa.update(MeterReportRecord).where(MeterReportRecord.value == value)
        await session.execute(changed.values(values))


async def make_unknown(metering: MeteringWorld, value: int) -> None:
    """Let the outcome of a report be unknown for a day."""
    await change_report(
        metering, value, sent_at=None, due_at=None, uncertain_since=now() - DAY_AGO, error="outcome unknown"
    )


async def test_equal_sums_are_no_difference(metering: MeteringWorld) -> None:
    subscribers = [await metering.subscriber() for _ in range(2)]
    await reports_at_minutes(metering, subscribers[0], 3, 4)
    results = await metering.reconcile()
    assert {(result.usage.key.user_id, result.at_stripe, result.differs) for result in results} == {
        (subscribers[0].user_id, 7, False),
        (subscribers[1].user_id, 0, False),
    }


async def test_runs_that_were_not_cut_or_sent_are_reported(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3)
    [result] = await metering.reconcile(dry_run=True)
    assert (result.differs, result.usage.counted, result.usage.cut) == (True, 3, 0)
    assert metering.at_stripe(subscriber) == 0
    [result] = await metering.reconcile()
    assert (result.differs, metering.at_stripe(subscriber)) == (False, 3)


async def test_current_and_previous_period_are_compared_each_with_its_sum(metering: MeteringWorld) -> None:
    end = seconds_ago(86_400 + 17)
    subscriber = await metering.subscriber(period_start=end - 30 * DAY, period_end=end)
    last = (await metering.billed(subscriber))[0][0]
    await metering.change(subscriber, current_period_start=end, current_period_end=end + 30 * DAY)
    period = await metering.period(subscriber)
    await metering.accept(subscriber, 2, period.__class__(last, period.start))
    await metering.accept(subscriber, 5)
    results = await metering.reconcile()
    assert [(result.at_stripe, result.differs) for result in results] == [(2, False), (5, False)]


async def test_runs_that_are_accepted_and_sent_meanwhile_are_no_difference(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    is_done = asyncio.Event()

    async def accept() -> None:
        while not is_done.is_set():
            await metering.accept(subscriber)

    async def report() -> None:
        while not is_done.is_set():
            await metering.report()

    async def compare() -> None:
        try:
            for _ in range(15):
                results = await metering.reconcile(settled=timedelta(hours=1))
                assert [str(result) for result in results if result.differs or result.resent] == []
        finally:
            is_done.set()

    await asyncio.gather(accept(), report(), report(), compare())
    assert metering.at_stripe(subscriber) > 0


async def test_refused_reports_are_sent_again(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3)
    await metering.cut()
    await metering.change_reports(due_at=None, error="404 resource_missing")
    [result] = await metering.reconcile(dry_run=True)
    assert (result.differs, result.resent, metering.at_stripe(subscriber)) == (True, 1, 0)
    [result] = await metering.reconcile()
    assert (result.differs, result.resent, metering.at_stripe(subscriber)) == (False, 1, 3)


class TestUnknownOutcome:
    async def test_report_that_stripe_has_is_confirmed(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await reports_at_minutes(metering, subscriber, 3, 4, 5)
        await make_unknown(metering, 4)
        metering.server.identifiers.clear()
        [result] = await metering.reconcile()
        assert (result.differs, result.confirmed, result.resent) == (False, 1, 0)
        assert metering.at_stripe(subscriber) == 12

    async def test_report_that_stripe_lacks_is_sent(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await reports_at_minutes(metering, subscriber, 3, 4, 5)
        await make_unknown(metering, 4)
        lose(metering, 4)
        [result] = await metering.reconcile()
        assert (result.differs, result.confirmed, result.resent) == (False, 0, 1)
        assert metering.at_stripe(subscriber) == 12

    async def test_several_reports_are_told_apart_by_their_minutes(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await reports_at_minutes(metering, subscriber, 1, 2, 3, 4, 5, 6)
        for value in (2, 3, 5):
            await make_unknown(metering, value)
        lose(metering, 3)
        metering.server.identifiers.clear()
        [result] = await metering.reconcile()
        assert (result.differs, result.confirmed, result.resent) == (False, 2, 1)
        assert metering.at_stripe(subscriber) == 21

    async def test_reports_of_one_minute_that_cannot_be_told_apart_are_left(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await reports_at_minutes(metering, subscriber, 3, 4)
        moment = now() - timedelta(minutes=30)
        await metering.change_reports(timestamp=moment)
        for event in metering.server.meter_events:
            event["timestamp"] = int(moment.timestamp())
        for value in (3, 4):
            await make_unknown(metering, value)
        lose(metering, 4)
        [result] = await metering.reconcile()
        assert (result.differs, result.confirmed, result.resent) == (True, 0, 0)
        assert metering.at_stripe(subscriber) == 3


class TestAcceptedReports:
    async def test_report_that_stripe_has_dropped_is_sent_again(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await reports_at_minutes(metering, subscriber, 3, 4, 5)
        lose(metering, 4)
        [result] = await metering.reconcile()
        assert (result.differs, result.resent, metering.at_stripe(subscriber)) == (False, 1, 12)

    async def test_report_is_not_counted_twice_while_stripe_knows_its_identifier(self, metering: MeteringWorld) -> None:
        """Its sum lacks an event that it has accepted, and adds it later."""
        subscriber = await metering.subscriber()
        await reports_at_minutes(metering, subscriber, 3, 4)
        events = list(metering.server.meter_events)
        lose(metering, 4, forgotten=False)
        await metering.reconcile()
        metering.server.meter_events[:] = events
        [result] = await metering.reconcile()
        assert (result.differs, metering.at_stripe(subscriber)) == (False, 7)

    async def test_report_that_was_just_sent_may_not_be_in_the_sum(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await reports_at_minutes(metering, subscriber, 3, 4)
        lose(metering, 4)
        [result] = await metering.reconcile(settled=timedelta(hours=1))
        assert (result.differs, result.resent, metering.at_stripe(subscriber)) == (False, 0, 3)

    async def test_surplus_at_stripe_is_shown_and_left(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await reports_at_minutes(metering, subscriber, 3, 4)
        [event] = [one for one in metering.server.meter_events if one["payload"]["value"] == "3"]
        metering.server.meter_events.append(event)
        [result] = await metering.reconcile()
        assert (result.differs, result.at_stripe, result.resent) == (True, 10, 0)
        assert "sent 7, at Stripe 10" in str(result)

    async def test_reports_that_are_missing_in_the_database_are_shown(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await reports_at_minutes(metering, subscriber, 3, 4)
        async with metering.database.transaction() as session:
            await session.execute(sa.delete(MeterReportRecord).where(MeterReportRecord.value == 4))
        [result] = await metering.reconcile()
        assert (result.differs, result.usage.cut, result.usage.reported, result.at_stripe) == (True, 7, 3, 7)


async def test_failing_report_is_a_difference_until_it_is_sent(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3)
    metering.server.fault = lambda call: "500" if call.method == "POST" else None
    [result] = await metering.reconcile()
    assert (result.differs, result.usage.cut, result.usage.sent, result.resent) == (True, 3, 0, 0)
    metering.server.fault = lambda call: None
    await metering.make_due()
    [result] = await metering.reconcile()
    assert (result.differs, metering.at_stripe(subscriber)) == (False, 3)


async def test_reports_of_a_deleted_user_are_compared(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3)
    await metering.cut()
    async with metering.database.transaction() as session:
        await session.execute(sa.delete(UserRecord))
    [result] = await metering.reconcile()
    assert (result.differs, result.usage.counted, metering.at_stripe(subscriber)) == (False, 3, 3)


async def test_missing_meter_is_named(metering: MeteringWorld) -> None:
    await metering.subscriber()
    metering.server.of_kind("billing.meter")[0]["status"] = "inactive"
    with pytest.raises(Unavailable, match="no active meter of the events bloxserver_runs"):
        await metering.reconcile()


class TestInTheBackground:
    async def test_one_process_compares_a_period_once_a_day(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await metering.accept(subscriber, 3)
        reconciler = Reconciler(metering.database, metering.stripe)

        async def compared() -> int:
            before = len(metering.server.calls)
            await asyncio.gather(*(reconciler.reconcile_due() for _ in range(3)))
            return len([call for call in metering.server.calls[before:] if "event_summaries" in call.path])

        assert await compared() == 0
        await self.age(metering, created_at=now() - INTERVAL)
        assert [await compared() for _ in range(2)] == [2, 0]  # one for each meter
        await self.age(metering, reconciled_at=now() - INTERVAL)
        assert await compared() == 2
        assert metering.at_stripe(subscriber) == 3

    async def test_comparison_that_failed_is_repeated_after_an_hour(self, metering: MeteringWorld) -> None:
        await metering.subscriber()
        await self.age(metering, created_at=now() - INTERVAL)
        metering.server.fault = lambda call: "429"
        with pytest.raises(Unavailable):
            await Reconciler(metering.database, metering.stripe).reconcile_due()
        for minutes, number in ((-1, 0), (1, 1)):
            async with metering.database.transaction() as session:
                assert len(await claim_periods(session, now() + RETRY + timedelta(minutes=minutes))) == number

    async def age(self, metering: MeteringWorld, **values: Any) -> None:
        async with metering.database.transaction() as session:
            await session.execute(sa.update(BillingPeriodRecord).values(values))


class TestCustomers:
    async def sync(self, metering: MeteringWorld, *, only_due: bool = True) -> tuple[int, int]:
        return await Reconciler(metering.database, metering.stripe).sync_customers(only_due=only_due)

    async def change(self, metering: MeteringWorld, **values: Any) -> None:
        async with metering.database.transaction() as session:
            await session.execute(sa.update(UserRecord).values(values))

    async def user(self, metering: MeteringWorld) -> UserRecord:
        async with metering.database.sessions() as session:
            return (await session.scalars(sa.select(UserRecord))).one()

    async def test_missed_events_take_effect(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        subscriber.subscription["status"] = "canceled"
        assert await self.sync(metering) == (0, 0)
        assert await self.sync(metering, only_due=False) == (1, 0)
        assert (await self.user(metering)).billing_status == BillingStatus.CANCELED

    async def test_customer_is_read_once_a_day(self, metering: MeteringWorld) -> None:
        await metering.subscriber()
        await self.change(metering, stripe_synced_at=now() - INTERVAL)
        assert [await self.sync(metering) for _ in range(2)] == [(1, 0), (0, 0)]
        await self.change(metering, stripe_synced_at=None)
        assert await self.sync(metering) == (0, 0)
        await self.change(metering, stripe_synced_at=None, updated_at=now() - INTERVAL)
        assert await self.sync(metering) == (1, 0)

    async def test_end_of_the_grace_period_takes_effect(self, metering: MeteringWorld) -> None:
        start = seconds_ago(7 * DAY - 60)
        subscriber = await metering.subscriber("past_due", period_start=start)
        assert ((await self.user(metering)).tier, await self.sync(metering)) == (Tier.PRO, (0, 0))
        subscriber.subscription["items"]["data"][0]["current_period_start"] = start - 120
        read_at = now() - timedelta(minutes=5)
        await self.change(metering, grace_ends_at=now() - timedelta(minutes=1), stripe_synced_at=read_at)
        assert [await self.sync(metering) for _ in range(2)] == [(1, 0), (0, 0)]
        assert (await self.user(metering)).tier == Tier.FREE

    async def test_renewal_whose_event_is_missing_takes_effect(self, metering: MeteringWorld) -> None:
        end = seconds_ago(60)
        subscriber = await metering.subscriber(period_start=end - 30 * DAY, period_end=end)
        await self.change(metering, stripe_synced_at=now() - timedelta(minutes=5))
        item = subscriber.subscription["items"]["data"][0]
        item |= {"current_period_start": end, "current_period_end": end + 30 * DAY}
        assert [await self.sync(metering) for _ in range(2)] == [(1, 0), (0, 0)]
        assert len(await metering.billed(subscriber)) == 2

    async def test_customer_that_cannot_be_read_does_not_stop_the_others(self, metering: MeteringWorld) -> None:
        broken, other = [await metering.subscriber() for _ in range(2)]
        metering.server.fault = lambda call: "429" if call.values.get("customer") == broken.customer_id else None
        assert await self.sync(metering, only_due=False) == (1, 1)
        for _ in range(2):
            await metering.subscriber()
        metering.server.fault = lambda call: "429"
        before = len(metering.server.calls)
        with pytest.raises(Unavailable):
            await self.sync(metering, only_due=False)
        assert len(metering.server.calls) == before + 3
        assert other.customer_id != broken.customer_id


async def test_usage_of_an_unpaid_period_is_no_difference(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 2)
    await metering.report()
    await metering.change(subscriber, "past_due")
    await metering.accept(subscriber, 3)
    [result] = await metering.reconcile()
    assert (result.differs, result.usage.counted) == (False, 2)


async def test_counter_that_is_lower_than_its_reports_is_a_difference(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await reports_at_minutes(metering, subscriber, 3)
    async with metering.database.transaction() as session:
        await session.execute(sa.update(UsageRecord).values(workflow_runs=0))
    [result] = await metering.reconcile()
    assert (result.differs, result.usage.counted, result.at_stripe) == (True, 0, 3)
