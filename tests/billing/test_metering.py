"""Each accepted run is in one report, whatever happens at the same time."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.metering import cut_period, time_in_period
from bloxserver.billing.prices import RUNS_METER
from bloxserver.models.tables import ExecutionRecord, UsageRecord, UserRecord
from bloxserver.queries.usage import Period
from bloxserver.services.usage import SLOTS
from tests.billing.metering_world import MeteringWorld, days_ago, seconds_ago, time_of
from tests.stripe_server import DAY


async def test_runs_of_all_slots_are_in_one_report(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3 * SLOTS)
    assert await metering.cut() == 1
    [report] = await metering.reports()
    period = await metering.period(subscriber)
    assert (report.value, report.customer_id, report.event_name) == (3 * SLOTS, subscriber.customer_id, RUNS_METER)
    assert report.identifier == f"runs:{subscriber.user_id}:{int(period.start.timestamp())}:0-{3 * SLOTS}"
    assert await metering.uncut() == []
    assert await metering.cut() == 0
    await metering.accept(subscriber, 2)
    await metering.cut()
    _, second = await metering.reports()
    assert re.fullmatch(r"runs:.*:48-50", second.identifier)
    async with metering.database.sessions() as session:
        assert None not in set(await session.scalars(sa.select(UsageRecord.last_synced_at)))


async def test_report_that_is_not_stored_leaves_the_counters(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3)
    [key] = await metering.uncut()

    async def fail(session: AsyncSession) -> None:
        assert await cut_period(session, key) == 3
        raise TimeoutError

    with pytest.raises(TimeoutError):
        async with metering.database.transaction() as session:
            await fail(session)
    assert await metering.counted(subscriber) == (3, 0)
    assert await metering.reports() == []
    await metering.cut()
    assert [report.value for report in await metering.reports()] == [3]


async def test_runs_and_cuts_at_the_same_time_count_each_run_once(metering: MeteringWorld) -> None:
    subscribers = [await metering.subscriber() for _ in range(3)]

    async def cut() -> None:
        for _ in range(10):
            await metering.cut()

    accepting = (metering.accept(subscriber, 20) for subscriber in subscribers for _ in range(3))
    await asyncio.gather(*accepting, *(cut() for _ in range(4)))
    await metering.cut()
    values: dict[str, int] = {}
    for report in await metering.reports():
        values[report.customer_id] = values.get(report.customer_id, 0) + report.value
    assert values == {subscriber.customer_id: 60 for subscriber in subscribers}


async def test_period_that_another_process_cuts_is_left_to_it(metering: MeteringWorld) -> None:
    if metering.database.is_sqlite:
        pytest.skip("SQLite has one writer")
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3)
    [key] = await metering.uncut()
    async with metering.database.transaction() as session:
        assert await cut_period(session, key) == 3
        async with metering.database.transaction() as other:
            assert await cut_period(other, key) == 0
    assert [report.value for report in await metering.reports()] == [3]


async def test_deleted_executions_are_reported(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 5)
    async with metering.database.transaction() as session:
        await session.execute(sa.delete(ExecutionRecord))
    await metering.report()
    assert metering.at_stripe(subscriber) == 5


async def test_report_outlives_the_user(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 5)
    await metering.cut()
    async with metering.database.transaction() as session:
        await session.execute(sa.delete(UserRecord))
    await metering.send()
    assert metering.at_stripe(subscriber) == 5


class TestPeriods:
    async def test_runs_count_for_the_period_in_which_they_were_accepted(self, metering: MeteringWorld) -> None:
        end = seconds_ago(300)
        subscriber = await metering.subscriber(period_start=end - 30 * DAY, period_end=end)
        last = await metering.period(subscriber, time_of(end - 1))
        await metering.accept(subscriber, 2, last)
        await metering.accept(subscriber, 3)  # before the event of the renewal
        await metering.report()
        await metering.change(subscriber, current_period_start=end, current_period_end=end + 30 * DAY)
        await metering.accept(subscriber, 4, last)  # a transaction that began in the last period
        await metering.accept(subscriber, 5)
        await metering.report()
        current = await metering.period(subscriber)
        assert [metering.at_stripe(subscriber, period) for period in (last, current)] == [6, 8]

    async def test_late_runs_of_35_days_are_reported(self, metering: MeteringWorld) -> None:
        end = days_ago(34)
        subscriber = await metering.subscriber(period_start=end - 30 * DAY, period_end=end)
        last = await metering.period(subscriber, time_of(end - 1))
        await metering.change(subscriber, current_period_start=end, current_period_end=end + 30 * DAY)
        await metering.accept(subscriber, 2, last)
        await metering.report()
        assert metering.at_stripe(subscriber, last) == 2

    async def test_later_runs_fail_and_are_kept(self, metering: MeteringWorld) -> None:
        end = days_ago(36)
        subscriber = await metering.subscriber(period_start=end - 30 * DAY, period_end=end)
        last = await metering.period(subscriber, time_of(end - 1))
        await metering.accept(subscriber, 2, last)
        await metering.report()
        [report] = await metering.reports()
        assert (report.error, report.sent_at, report.due_at) == ("too old", None, None)
        assert metering.server.calls[-1].path == "/v1/subscriptions"
        [result] = await metering.reconcile()
        assert (result.differs, result.usage.cut, result.usage.sent) == (True, 2, 0)


START, END = datetime(2026, 6, 20, 8, 30, 15, tzinfo=UTC), datetime(2026, 7, 20, 8, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (START + timedelta(days=3, microseconds=7), START + timedelta(days=3)),
        (START, START + timedelta(seconds=45)),
        (START + timedelta(seconds=45), START + timedelta(seconds=45)),
        (END - timedelta(seconds=16), END - timedelta(seconds=16)),
        (END - timedelta(seconds=15), END - timedelta(seconds=16)),
        (END, END - timedelta(seconds=16)),
        (END + timedelta(days=20), END - timedelta(seconds=16)),
    ],
)
def test_usage_is_dated_within_the_whole_minutes_of_its_period(moment: datetime, expected: datetime) -> None:
    assert time_in_period(moment, START, END) == expected


def test_period_of_whole_minutes_is_used_up_to_its_last_second() -> None:
    period = Period(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC))
    assert time_in_period(period.start, period.start, period.end) == period.start
    assert time_in_period(period.end, period.start, period.end) == period.end - timedelta(seconds=1)
