"""Samples of storage are compared with the sums of their own meter, and what Stripe lacks is sent once."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from bloxserver.billing.prices import RUNS_METER, STORAGE_METER
from bloxserver.clock import now
from bloxserver.errors import Unavailable
from bloxserver.models.tables import MeterReportRecord, UserRecord
from tests.billing.metering_world import MeteringWorld, Subscriber, seconds_ago
from tests.billing.test_reconcile import change_report, lose, make_unknown
from tests.stripe_server import DAY


async def subscriber_with(metering: MeteringWorld, *megabytes: int) -> Subscriber:
    """A user with samples of the last days, which were sent, and a sent report of 7 runs."""
    start = seconds_ago(9 * DAY)
    subscriber = await metering.subscriber(period_start=start, period_end=start + 30 * DAY)
    for number, value in enumerate(megabytes):
        await metering.store(subscriber, 10 * 10**9 + value * 10**6)
        await metering.sample(now() - timedelta(days=number))
    await metering.accept(subscriber, 7)
    await metering.report()
    return subscriber


async def test_each_meter_is_compared_with_its_sum(metering: MeteringWorld) -> None:
    subscriber = await subscriber_with(metering, 3_000, 0, 4_000)
    for meter, at_stripe, name in ((RUNS_METER, 7, "runs"), (STORAGE_METER, 7_000, "storage")):
        [result] = await metering.reconcile(meter=meter)
        usage = result.usage
        assert (result.at_stripe, result.differs, usage.counted, usage.sent) == (at_stripe, False, *[at_stripe] * 2)
        assert f", {name}: counted {at_stripe}" in str(result)
    assert (metering.at_stripe(subscriber), metering.stored_at_stripe(subscriber)) == (7, 7_000)


async def test_report_that_stripe_has_dropped_is_sent_again(metering: MeteringWorld) -> None:
    subscriber = await subscriber_with(metering, 3_000, 4_000)
    lose(metering, 4_000)
    [result] = await metering.reconcile(meter=STORAGE_METER)
    assert (result.differs, result.resent, metering.stored_at_stripe(subscriber)) == (False, 1, 7_000)
    assert metering.at_stripe(subscriber) == 7


async def test_refused_report_is_sent_again(metering: MeteringWorld) -> None:
    subscriber = await subscriber_with(metering, 3_000)
    lose(metering, 3_000)
    await change_report(metering, 3_000, sent_at=None, uncertain_since=None, error="404 resource_missing")
    [result] = await metering.reconcile(meter=STORAGE_METER)
    assert (result.differs, result.resent, metering.stored_at_stripe(subscriber)) == (False, 1, 3_000)


async def test_reports_of_unknown_outcome_are_confirmed_or_sent(metering: MeteringWorld) -> None:
    subscriber = await subscriber_with(metering, 3_000, 4_000, 5_000)
    for value in (3_000, 4_000):
        await make_unknown(metering, value)
    lose(metering, 4_000)
    metering.server.identifiers.clear()
    [result] = await metering.reconcile(meter=STORAGE_METER)
    assert (result.differs, result.confirmed, result.resent) == (False, 1, 1)
    assert (metering.at_stripe(subscriber), metering.stored_at_stripe(subscriber)) == (7, 12_000)


async def test_sample_without_its_report_and_surplus_at_stripe_are_shown(metering: MeteringWorld) -> None:
    subscriber = await subscriber_with(metering, 3_000, 4_000)
    async with metering.database.transaction() as session:
        await session.execute(sa.delete(MeterReportRecord).where(MeterReportRecord.value == 4_000))
    [result] = await metering.reconcile(meter=STORAGE_METER)
    assert (result.differs, result.usage.counted, result.usage.reported, result.at_stripe) == (
        *(True, 7_000, 3_000),
        7_000,
    )
    assert [one.differs for one in await metering.reconcile()] == [False]
    assert metering.stored_at_stripe(subscriber) == 7_000


async def test_sample_without_its_report_is_shown_after_the_user_was_deleted(metering: MeteringWorld) -> None:
    await subscriber_with(metering, 3_000, 4_000)
    lose(metering, 4_000)
    async with metering.database.transaction() as session:
        await session.execute(sa.delete(MeterReportRecord).where(MeterReportRecord.value == 4_000))
        await session.execute(sa.delete(UserRecord))
    [result] = await metering.reconcile(meter=STORAGE_METER)
    assert (result.differs, result.usage.counted, result.usage.sent, result.at_stripe) == (True, 7_000, 3_000, 3_000)


async def test_runs_are_compared_although_there_is_no_meter_of_storage(metering: MeteringWorld) -> None:
    subscribers = [await subscriber_with(metering, 3_000) for _ in range(2)]
    lose(metering, 7)
    [storage] = [one for one in metering.server.of_kind("billing.meter") if one["event_name"] == STORAGE_METER]
    storage["status"] = "inactive"
    with pytest.raises(Unavailable, match="no active meter of the events bloxserver_storage"):
        await metering.reconcile()
    assert [metering.at_stripe(subscriber) for subscriber in subscribers] == [7, 7]
