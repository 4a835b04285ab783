"""Each billed user is sampled once a day, and each sample is reported once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.prices import STORAGE_METER
from bloxserver.billing.storage import delete_old_samples, sample_storage
from bloxserver.clock import now
from bloxserver.models.enums import Tier, TierSource
from bloxserver.models.tables import BillingPeriodRecord, StorageSampleRecord, UserRecord
from tests.billing.metering_world import MeteringWorld, Subscriber, time_of
from tests.stripe_server import DAY

GIGABYTE = 10**9
INCLUDED = 10 * GIGABYTE


def today() -> int:
    """The beginning of this day in UTC, in seconds since 1970."""
    return int(now().timestamp()) // DAY * DAY


async def change_users(metering: MeteringWorld, **values: Any) -> None:
    async with metering.database.transaction() as session:
        await session.execute(sa.update(UserRecord).values(values))


async def periods_of_samples(metering: MeteringWorld, subscriber: Subscriber) -> list[datetime]:
    sample = StorageSampleRecord
    found = sa.select(sample.period_start).where(sample.user_id == subscriber.user_id).order_by(sample.day)
    async with metering.database.sessions() as session:
        return list(await session.scalars(found))


async def test_sample_of_a_day_is_written_once_with_its_report(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.store(subscriber, INCLUDED + 2_001_999_999)
    moment = now()
    await metering.sample(moment)
    await metering.store(subscriber, INCLUDED + 5 * GIGABYTE)
    await metering.sample(moment)
    day = moment.date()
    assert await metering.samples(subscriber) == [(day, 2_001)]
    async with metering.database.sessions() as session:
        sample = (await session.scalars(sa.select(StorageSampleRecord))).one()
    period = await metering.period(subscriber)
    assert (sample.bytes, sample.period_start) == (INCLUDED + 2_001_999_999, period.start)
    [report] = await metering.reports()
    assert (report.identifier, report.value) == (f"storage:{subscriber.user_id}:{day}", 2_001)
    assert (report.event_name, report.customer_id) == ("bloxserver_storage", subscriber.customer_id)
    assert (report.period_start, report.timestamp) == (period.start, moment.replace(microsecond=0))
    await metering.send()
    assert metering.stored_at_stripe(subscriber) == 2_001
    assert metering.at_stripe(subscriber) == 0


async def test_sum_of_the_days_is_billed(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber(period_start=today() - 5 * DAY, period_end=today() + 25 * DAY)
    for days_ago, gigabytes in ((3, 1), (2, 3), (0, 7)):  # no process sampled on the day in between
        await metering.store(subscriber, INCLUDED + gigabytes * GIGABYTE)
        await metering.sample(now() - timedelta(days=days_ago))
    await metering.send()
    assert metering.stored_at_stripe(subscriber) == 11_000
    assert [value for _, value in await metering.samples(subscriber)] == [1_000, 3_000, 7_000]


@pytest.mark.parametrize(
    ("stored", "limits", "billed"),
    [
        (0, None, 0),
        (INCLUDED - 1, None, 0),
        (INCLUDED + 10**6 - 1, None, 0),
        (INCLUDED + 10**6, None, 1),
        (45 * GIGABYTE, None, 35_000),
        (12 * GIGABYTE, {"included_stored_bytes": 11 * GIGABYTE}, 1_000),
        (12 * GIGABYTE, {"included_stored_bytes": None}, 0),
        (12 * GIGABYTE, {"storage_overage_usd_per_gb": None}, 0),
    ],
)
async def test_whole_megabytes_beyond_the_included_ones_are_reported(
    metering: MeteringWorld, stored: int, limits: dict[str, int] | None, billed: int
) -> None:
    subscriber = await metering.subscriber()
    await change_users(metering, limits=limits)
    await metering.store(subscriber, stored)
    await metering.sample()
    assert [value for _, value in await metering.samples(subscriber)] == [billed]
    assert [report.value for report in await metering.reports()] == ([billed] if billed else [])


class TestBilledUsers:
    @pytest.mark.parametrize(
        ("status", "values", "is_sampled"),
        [
            ("active", {}, True),
            ("active", {"cancel_at_period_end": True}, True),
            ("trialing", {}, False),
            ("past_due", {}, False),
            ("unpaid", {}, False),
            ("paused", {}, False),
            ("incomplete", {}, False),
            ("canceled", {}, False),
        ],
    )
    async def test_storage_is_sampled_while_the_subscription_is_active(
        self, metering: MeteringWorld, status: str, values: dict[str, bool], is_sampled: bool
    ) -> None:
        subscriber = await metering.subscriber(status, **values)
        await metering.store(subscriber, INCLUDED + GIGABYTE)
        await metering.sample()
        assert len(await metering.samples(subscriber)) == is_sampled

    @pytest.mark.parametrize("status", ["past_due", "canceled"])
    async def test_storage_is_not_sampled_after_the_subscription_was_active(
        self, metering: MeteringWorld, status: str
    ) -> None:
        subscriber = await metering.subscriber()
        await metering.change(subscriber, status)
        await metering.store(subscriber, INCLUDED + GIGABYTE)
        await metering.sample()
        assert await metering.samples(subscriber) == []
        await metering.change(subscriber, "active")
        await metering.sample()
        assert len(await metering.samples(subscriber)) == 1

    @pytest.mark.parametrize(
        "values", [{"tier": Tier.PRO, "tier_source": TierSource.OPERATOR}, {"deleted_at": time_of(1)}]
    )
    async def test_plan_of_an_operator_and_deleted_users_are_not_sampled(
        self, metering: MeteringWorld, values: dict[str, Any]
    ) -> None:
        subscriber = await metering.subscriber()
        await change_users(metering, **values)
        await metering.store(subscriber, INCLUDED + GIGABYTE)
        await metering.sample()
        assert await metering.samples(subscriber) == []

    async def test_sample_and_report_outlive_the_user(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await metering.store(subscriber, INCLUDED + GIGABYTE)
        await metering.sample()
        async with metering.database.transaction() as session:
            await session.execute(sa.delete(UserRecord))
        [result] = await metering.reconcile(meter=STORAGE_METER)
        assert (result.differs, result.usage.counted, metering.stored_at_stripe(subscriber)) == (False, 1_000, 1_000)


class TestDays:
    async def test_period_has_a_sample_for_each_midnight(self, metering: MeteringWorld) -> None:
        begun = today() - 61 * DAY + 54_321
        subscriber = await metering.subscriber(period_start=begun, period_end=begun + 30 * DAY)
        for number in range(62):
            moment = begun + number * DAY - 777
            if number in (30, 60):
                start = begun + number * DAY
                await metering.change(subscriber, current_period_start=start, current_period_end=start + 30 * DAY)
            await metering.sample(time_of(moment))
            await metering.sample(time_of(moment + 1_554))
        periods = await periods_of_samples(metering, subscriber)
        assert [periods.count(time_of(begun + number * DAY)) for number in (0, 30, 60)] == [30, 30, 1]

    async def test_day_of_a_renewal_counts_for_the_period_in_which_it_begins(self, metering: MeteringWorld) -> None:
        start, end = today() - 30 * DAY + 3_600, today() + 3_600
        subscriber = await metering.subscriber(period_start=start, period_end=end)
        await metering.change(subscriber, current_period_start=end, current_period_end=end + 30 * DAY)
        await metering.store(subscriber, INCLUDED + GIGABYTE)
        await metering.sample(time_of(end + 7_200))
        await metering.sample(time_of(end + DAY))
        assert await periods_of_samples(metering, subscriber) == [time_of(start), time_of(end)]
        assert [report.timestamp for report in await metering.reports()] == [time_of(end - 1), time_of(end + DAY)]

    async def test_sample_waits_for_the_event_of_the_renewal(self, metering: MeteringWorld) -> None:
        end = today() - 600
        subscriber = await metering.subscriber(period_start=end - 30 * DAY, period_end=end)
        await metering.sample(time_of(today() + 60))
        assert await metering.samples(subscriber) == []
        await metering.change(subscriber, current_period_start=end, current_period_end=end + 30 * DAY)
        await metering.sample(time_of(today() + 600))
        assert await periods_of_samples(metering, subscriber) == [time_of(end)]

    async def test_day_is_that_in_utc(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber(period_start=today() - 3 * DAY)
        moment = time_of(today() - 1).astimezone(timezone(timedelta(hours=9)))
        await metering.sample(moment)
        assert [day for day, _ in await metering.samples(subscriber)] == [time_of(today() - DAY).date()]

    async def test_old_samples_are_deleted(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        days = [now().astimezone(UTC).date() - timedelta(days=number) for number in (101, 100, 0)]
        values = {"user_id": subscriber.user_id, "period_start": now(), "bytes": 1, "billed_megabytes": 0}
        async with metering.database.transaction() as session:
            await session.execute(sa.insert(StorageSampleRecord), [values | {"day": day} for day in days])
            assert await delete_old_samples(session, now()) is False
        assert [day for day, _ in await metering.samples(subscriber)] == [days[1], days[2]]


class TestProcesses:
    async def test_one_of_several_writes_the_sample_and_its_report(self, metering: MeteringWorld) -> None:
        subscribers = [await metering.subscriber(period_start=today() - 9 * DAY) for _ in range(5)]
        for subscriber in subscribers:
            await metering.store(subscriber, INCLUDED + GIGABYTE)

        async def sample() -> None:
            for number in range(8):
                await metering.sample(now() - timedelta(days=number))

        await asyncio.gather(*(sample() for _ in range(4)))
        await asyncio.gather(*(metering.send() for _ in range(3)))
        assert [len(await metering.samples(subscriber)) for subscriber in subscribers] == [8] * 5
        assert [metering.stored_at_stripe(subscriber) for subscriber in subscribers] == [8_000] * 5
        assert len(await metering.reports()) == len(metering.server.meter_events) == 40

    async def test_one_that_ends_early_leaves_neither_sample_nor_report(self, metering: MeteringWorld) -> None:
        subscriber = await metering.subscriber()
        await metering.store(subscriber, INCLUDED + GIGABYTE)

        async def fail(session: AsyncSession) -> None:
            await sample_storage(session, now())
            raise TimeoutError

        with pytest.raises(TimeoutError):
            async with metering.database.transaction() as session:
                await fail(session)
        assert (await metering.samples(subscriber), await metering.reports()) == ([], [])
        await metering.sample()
        assert [report.value for report in await metering.reports()] == [1_000]

    async def test_many_users_are_sampled_in_several_transactions(
        self, metering: MeteringWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bloxserver.billing.storage.SAMPLED_AT_ONCE", 2)
        subscribers = [await metering.subscriber() for _ in range(5)]
        await metering.sample_all()
        assert [len(await metering.samples(subscriber)) for subscriber in subscribers] == [1] * 5


async def test_period_that_is_not_billed_is_not_sampled(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    async with metering.database.transaction() as session:
        await session.execute(sa.update(BillingPeriodRecord).values(is_billed=False))
    await metering.sample()
    assert await metering.samples(subscriber) == []
