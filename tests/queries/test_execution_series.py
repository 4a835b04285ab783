"""Statistics of a flow over time, and the buckets of local hours and days."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound, Unprocessable
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord, TriggerType, UserRecord
from bloxserver.queries.execution_series import Interval, SeriesRequest, limits_of, read_series
from tests.factories import create_execution, create_flow, create_user
from tests.requesters import requester
from tests.statements import count_statements

BERLIN, LORD_HOWE = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Lord_Howe")
UTC_ZONE = ZoneInfo("UTC")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


async def read(session: AsyncSession, user: UserRecord, flow: FlowRecord, request: SeriesRequest) -> list[Any]:
    return [json.loads(line) for line in await read_series(session, requester(user), flow.id, request)]


@pytest.mark.parametrize("interval", list(Interval))
async def test_buckets_count_the_executions_that_started_in_them(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, database_engine: AsyncEngine, interval: Interval
) -> None:
    begin, end, span = {
        Interval.MINUTE: (utc(2024, 3, 31, 0, 30, 20), utc(2024, 3, 31, 1, 30), 60 * 70),
        Interval.HOUR: (utc(2024, 3, 30, 20, 10), utc(2024, 3, 31, 21), 3600 * 30),
        Interval.DAY: (utc(2024, 3, 28), utc(2024, 4, 3, 22), 86400 * 8),
    }[interval]
    chance = Random(interval.value)  # noqa: S311
    rows = [
        ExecutionRecord(
            id=uuid4(),
            flow_id=flow.id,
            trigger_type=TriggerType.MANUAL,
            status=chance.choice(list(ExecutionStatus)),
            started_at=begin + timedelta(seconds=chance.randrange(-600, span), microseconds=chance.choice((0, 999999))),
            duration_ms=chance.choice((None, 3, 10)),
            input_tokens=chance.randrange(5),
            output_tokens=chance.randrange(5),
        )
        for _ in range(150)
    ]
    session.add_all(rows)
    await create_execution(session, flow, mode="test", started_at=begin)
    await create_execution(session, await create_flow(session, user), started_at=begin)
    request = SeriesRequest(interval, BERLIN, begin, end)
    with count_statements(database_engine) as statements:
        buckets = await read(session, user, flow, request)
    limits = limits_of(request)
    assert len(statements) == 1
    assert [datetime.fromisoformat(bucket["start"]) for bucket in buckets] == limits[:-1]
    assert [datetime.fromisoformat(bucket["end"]) for bucket in buckets] == limits[1:]
    for bucket, (start, until) in zip(buckets, pairwise(limits), strict=True):
        within = [row for row in rows if start <= row.started_at < until]
        durations = [row.duration_ms for row in within if row.duration_ms is not None]
        assert bucket["executions"] == len(within)
        assert {status.value: bucket[status.value] for status in ExecutionStatus} == {
            status.value: sum(row.status is status for row in within) for status in ExecutionStatus
        }
        assert bucket["avgDurationMs"] == pytest.approx(sum(durations) / len(durations) if durations else 0)
        assert bucket["inputTokens"] == sum(row.input_tokens for row in within)
        assert bucket["outputTokens"] == sum(row.output_tokens for row in within)
    assert sum(bucket["executions"] for bucket in buckets) > 50


async def test_series_counts_stored_executions_only(session: AsyncSession, user: UserRecord, flow: FlowRecord) -> None:
    await create_execution(session, flow, started_at=utc(2024, 5, 1, 12, 59, 59, 999999))
    request = SeriesRequest(Interval.HOUR, UTC_ZONE, utc(2024, 5, 1, 12), utc(2024, 5, 1, 14))
    assert [bucket["executions"] for bucket in await read(session, user, flow, request)] == [1, 0]
    await session.execute(sa.delete(ExecutionRecord))
    assert [bucket["executions"] for bucket in await read(session, user, flow, request)] == [0, 0]


async def test_series_of_another_users_flow_is_not_found(session: AsyncSession, flow: FlowRecord) -> None:
    other = requester(await create_user(session))
    with pytest.raises(NotFound):
        await read_series(session, other, flow.id, SeriesRequest(Interval.DAY, UTC_ZONE))
    assert other.confirmed == [other.id]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        (BERLIN, utc(2024, 3, 31, 12), 23),
        (BERLIN, utc(2024, 10, 27, 12), 25),
        (BERLIN, utc(2024, 7, 1, 12), 24),
        (ZoneInfo("America/Santiago"), utc(2024, 9, 8, 12), 23),  # has no midnight
        (ZoneInfo("America/Havana"), utc(2024, 11, 3, 12), 25),  # has midnight twice
        (LORD_HOWE, utc(2024, 4, 6, 20), 24.5),
        (ZoneInfo("Pacific/Apia"), utc(2011, 12, 30, 12), 24),  # the day after an omitted day
    ],
)
def test_day_has_the_hours_of_the_local_clock(zone: ZoneInfo, day: datetime, hours: float) -> None:
    (start, end) = limits_of(SeriesRequest(Interval.DAY, zone, day, day + timedelta(seconds=1)))
    assert end - start == hours * HOUR
    local = start.astimezone(zone)
    assert (local.hour, local.minute) in {(0, 0), (1, 0)}
    assert (start - timedelta(microseconds=1)).astimezone(zone).date() < local.date()


def test_hours_begin_when_the_local_clock_shows_a_full_hour() -> None:
    for zone, begin in (
        (BERLIN, utc(2024, 3, 31, 0, 30)),
        (BERLIN, utc(2024, 10, 26, 23, 30)),
        (ZoneInfo("Asia/Kathmandu"), utc(2024, 5, 1)),
        (LORD_HOWE, utc(2024, 4, 6, 13)),
        (LORD_HOWE, utc(2024, 10, 5, 13)),
    ):
        limits = limits_of(SeriesRequest(Interval.HOUR, zone, begin, begin + 5 * HOUR))
        assert all(limit.astimezone(zone).minute == 0 for limit in limits)
        assert limits[0] <= begin < limits[1]
        assert limits[-2] < begin + 5 * HOUR <= limits[-1]
        widths = {end - start for start, end in pairwise(limits)}
        assert HOUR in widths
        assert widths <= {HOUR, 1.5 * HOUR}
        for start, end in pairwise(limits):
            for moment in (start, start + HOUR / 2, end - timedelta(minutes=15), end - timedelta(microseconds=1)):
                again = limits_of(SeriesRequest(Interval.HOUR, zone, moment, moment + timedelta(seconds=1)))
                assert again[0] == start


@pytest.mark.parametrize(("interval", "count"), [("minute", 60), ("hour", 24), ("day", 30)])
def test_default_ends_with_the_current_bucket(interval: str, count: int) -> None:
    moment = now()
    limits = limits_of(SeriesRequest(Interval(interval), BERLIN))
    assert len(limits) == count + 1
    assert limits[-2] <= moment + timedelta(seconds=5)
    assert limits[-1] >= moment
    given = limits_of(SeriesRequest(Interval(interval), BERLIN, end=utc(2024, 3, 31, 22)))
    assert (len(given), given[-1]) == (count + 1, utc(2024, 3, 31, 22))


@pytest.mark.parametrize(
    ("begin", "end", "member"),
    [
        (utc(2024, 1, 1), utc(2024, 1, 1), "query.to"),
        (utc(2024, 1, 2), utc(2024, 1, 1), "query.to"),
        (utc(9998, 1, 1), None, "query.to"),
        (utc(2024, 1, 1), utc(2024, 1, 2, 1, 1), "query.from"),
        (utc(1, 1, 1), None, "query.from"),
        (utc(9999, 12, 31, 23, 59), utc(9999, 12, 31, 23, 59, 59), "query.from"),
        (None, utc(1, 1, 1), "query.from"),
    ],
)
def test_empty_interval_and_too_many_buckets_are_rejected(
    begin: datetime | None, end: datetime | None, member: str
) -> None:
    with pytest.raises(Unprocessable) as error:
        limits_of(SeriesRequest(Interval.MINUTE, UTC_ZONE, begin, end))
    assert list(error.value.details or {}) == [member]


def test_as_many_buckets_as_allowed_are_possible() -> None:
    limits = limits_of(SeriesRequest(Interval.MINUTE, UTC_ZONE, utc(2024, 1, 1), utc(2024, 1, 2, 1)))
    assert len(limits) == 1501


@pytest.mark.parametrize("moment", [utc(1, 1, 1), utc(1880, 5, 1, 12, 7), utc(9999, 12, 31, 23, 59)])
def test_time_of_any_year_is_answered_or_rejected(moment: datetime) -> None:
    for interval in Interval:
        for zone in (BERLIN, ZoneInfo("Pacific/Chatham"), ZoneInfo("America/New_York"), ZoneInfo("Africa/Monrovia")):
            try:
                limits = limits_of(SeriesRequest(interval, zone, moment, moment + timedelta(seconds=1)))
            except Unprocessable:
                assert moment.year in {1, 9999}
            else:
                assert limits[0] <= moment < limits[-1]
