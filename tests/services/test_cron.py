"""Firing times: in local time, also when clocks change, and never in the past."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from bloxserver.errors import Unprocessable
from bloxserver.services.cron import Cron, upcoming

BERLIN = "Europe/Berlin"
ZONES = [
    BERLIN,
    "America/New_York",
    "Australia/Sydney",
    "Europe/Dublin",
    "UTC",
    # clocks change at midnight
    "Africa/Cairo",
    "America/Havana",
    "America/Santiago",
    "Asia/Beirut",
    # clocks change by half an hour, by two hours, or at 02:45; the others have unusual rules
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Pacific/Chatham",
    "Africa/Casablanca",
    "America/St_Johns",
]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def firings(cron: str, since: str, until: str, zone: str = BERLIN) -> list[str]:
    """Local times with their offset, from `since` to before `until`, both in UTC."""
    times = Cron({"cron": cron, "timezone": zone}).after(at(since) - timedelta(seconds=1))
    return [f"{time.astimezone(ZoneInfo(zone)):%H:%M%z}" for time in takewhile(lambda time: time < at(until), times)]


def in_spring(cron: str) -> list[str]:
    """From midnight to 05:00 of the night in which 02:00 is 03:00."""
    return [time.removesuffix("00") for time in firings(cron, "2026-03-28T23:00", "2026-03-29T03:00")]


def in_autumn(cron: str) -> list[str]:
    """From midnight to 05:00 of the night in which 03:00 is 02:00."""
    return [time.removesuffix("00") for time in firings(cron, "2026-10-24T22:00", "2026-10-25T04:00")]


@pytest.mark.parametrize(
    ("cron", "spring", "autumn"),
    [
        # a time of day
        ("30 2 * * *", ["03:00+02"], ["02:30+02"]),
        ("0 3 * * *", ["03:00+02"], ["03:00+01"]),
        ("15,45 2 * * *", ["03:00+02"], ["02:15+02", "02:45+02"]),
        # every N minutes
        (
            "*/30 * * * *",
            ["00:00+01", "00:30+01", "01:00+01", "01:30+01", "03:00+02", "03:30+02", "04:00+02", "04:30+02"],
            [
                *("00:00+02", "00:30+02", "01:00+02", "01:30+02", "02:00+02", "02:30+02"),
                *("02:00+01", "02:30+01", "03:00+01", "03:30+01", "04:00+01", "04:30+01"),
            ],
        ),
        # every hour, every N hours
        (
            "0 * * * *",
            ["00:00+01", "01:00+01", "03:00+02", "04:00+02"],
            ["00:00+02", "01:00+02", "02:00+02", "02:00+01", "03:00+01", "04:00+01"],
        ),
        ("0 */2 * * *", ["00:00+01", "04:00+02"], ["00:00+02", "02:00+02", "02:00+01", "04:00+01"]),
        # ranges and lists of hours
        ("0 1-4 * * *", ["01:00+01", "03:00+02", "04:00+02"], ["01:00+02", "02:00+02", "03:00+01", "04:00+01"]),
        ("0,30 2-3 * * *", ["03:00+02", "03:30+02"], ["02:00+02", "02:30+02", "03:00+01", "03:30+01"]),
        ("*/30 2 * * *", [], ["02:00+02", "02:30+02", "02:00+01", "02:30+01"]),
        (
            "*/30 1-3 * * *",
            ["01:00+01", "01:30+01", "03:00+02", "03:30+02"],
            ["01:00+02", "01:30+02", "02:00+02", "02:30+02", "02:00+01", "02:30+01", "03:00+01", "03:30+01"],
        ),
    ],
)
def test_firings_when_clocks_change(cron: str, spring: list[str], autumn: list[str]) -> None:
    """The table in docs/schedules.md."""
    assert in_spring(cron) == spring
    assert in_autumn(cron) == autumn


@pytest.mark.parametrize(
    ("cron", "days"),
    [
        # either of two restricted days matches
        ("0 9 13 * 5", ["02", "09", "13", "16", "23", "30"]),
        # if one of the fields begins with *, both must match
        ("0 9 */2 * 1", ["05", "19"]),
        ("0 9 1-7 * *", ["01", "02", "03", "04", "05", "06", "07"]),
        ("0 9 L * *", ["31"]),
        ("0 9 LW * *", ["30"]),
        ("0 9 1,L * *", ["01", "31"]),
        ("0 9 * * 5L", ["30"]),
        ("0 9 * * FRI#2", ["09"]),
        ("0 9 * * 1#1,1#3", ["05", "19"]),
        ("0 9 * OCT SUN", ["04", "11", "18", "25"]),
        ("0 9 * 10 0", ["04", "11", "18", "25"]),
        ("0 9 * 10 7", ["04", "11", "18", "25"]),
        ("0 9 L * 1#1", ["05", "31"]),
    ],
)
def test_firings_by_day_of_month_and_week(cron: str, days: list[str]) -> None:
    """Days of October 2026, which begins on a Thursday and ends on a Saturday."""
    times = takewhile(lambda time: time < at("2026-11-01T00:00"), Cron({"cron": cron}).after(at("2026-10-01T00:00")))
    assert [f"{time:%d}" for time in times] == days


@pytest.mark.parametrize(
    "cron",
    ["@daily", "0 0 9 * * *", "0 9 ? * *", "0 9 15W * *", "0 9 * * FRI-MON", "0 9 * * 5#6", "0 9 30 2 *", "0 24 * * *"],
)
def test_invalid_expression_is_refused(cron: str) -> None:
    with pytest.raises(Unprocessable):
        Cron({"cron": cron})


@pytest.mark.parametrize(
    ("zone", "cron", "moment", "passed", "following"),
    [
        (BERLIN, "30 2 * * *", "2026-10-25T01:05", "2026-10-25T00:30", "2026-10-26T01:30"),
        (BERLIN, "15,45 2 * * *", "2026-10-25T01:20", "2026-10-25T00:45", "2026-10-26T01:15"),
        (BERLIN, "0,30 0-23 * * *", "2026-10-25T01:05", "2026-10-25T00:30", "2026-10-25T02:00"),
        ("America/New_York", "30 1 * * *", "2026-11-01T06:05", "2026-11-01T05:30", "2026-11-02T06:30"),
        ("Africa/Cairo", "30 23 * * *", "2026-10-29T21:05", "2026-10-29T20:30", "2026-10-30T21:30"),
        ("America/Santiago", "30 23 * * *", "2026-04-05T03:05", "2026-04-05T02:30", "2026-04-06T03:30"),
        ("America/Havana", "30 0 * * *", "2026-11-01T05:05", "2026-11-01T04:30", "2026-11-02T05:30"),
        ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04T15:10", "2026-04-04T14:45", "2026-04-05T15:15"),
    ],
)
def test_in_the_second_pass_of_a_repeated_hour_the_next_firing_is_later(
    zone: str, cron: str, moment: str, passed: str, following: str
) -> None:
    config = {"cron": cron, "timezone": zone}
    assert Cron(config).next_after(at(moment)) == at(following)
    assert Cron(config).last_before(at(moment)) == at(passed)
    assert upcoming(config, at(moment), 1) == [at(following)]


def random_field(chance: random.Random, low: int, high: int) -> str:
    first = chance.randint(low, high)
    kinds = (
        "*",
        f"*/{chance.randint(2, 15)}",
        f"{first}-{chance.randint(first, high)}",
        ",".join(str(chance.randint(low, high)) for _ in range(3)),
        str(first),
    )
    return chance.choice(kinds)


def random_cron(chance: random.Random, change: datetime, zone: str) -> str:
    """A random expression with hours around the clock change."""
    near = str((change - timedelta(hours=chance.randrange(3))).astimezone(ZoneInfo(zone)).hour)
    hours = chance.choice([random_field(chance, 0, 23), random_field(chance, 0, 4), near, near])
    day, weekday = ("*" if chance.random() < 0.7 else random_field(chance, *span) for span in ((1, 28), (0, 6)))
    return f"{random_field(chance, 0, 59)} {hours} {day} * {weekday}"


def clock_changes(zone: str) -> list[datetime]:
    """The hours of 2026 after which the zone's clocks change; an arbitrary hour if they never change."""
    days = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(365)]
    hours = [
        day + timedelta(hours=hour)
        for day in days
        if offset(day, zone) != offset(day + timedelta(days=1), zone)
        for hour in range(24)
    ]
    changes = [hour for hour in hours if offset(hour, zone) != offset(hour + timedelta(hours=1), zone)]
    return [hour + timedelta(hours=1) for hour in changes] or [datetime(2026, 5, 1, tzinfo=UTC)]


def offset(moment: datetime, zone: str) -> timedelta | None:
    return moment.astimezone(ZoneInfo(zone)).utcoffset()


@pytest.mark.parametrize("zone", ZONES)
def test_firings_are_after_the_given_moment(zone: str) -> None:
    chance = random.Random(zone)  # noqa: S311
    for change in clock_changes(zone):
        for _ in range(20):
            cron = Cron({"cron": random_cron(chance, change, zone), "timezone": zone})
            moment = change + timedelta(seconds=chance.randint(-4_000, 4_000), microseconds=chance.randint(0, 1))
            following = [time for time, _ in zip(cron.after(moment), range(5), strict=False)]
            assert moment < following[0], (cron._expression, moment)
            assert following == sorted(set(following)), (cron._expression, moment)
            passed = cron.last_before(moment)
            assert passed is not None
            assert passed <= moment, (cron._expression, moment)
            assert next(cron.after(passed)) >= following[0], (cron._expression, moment)


def expected(cron: str, zone: ZoneInfo, minutes: Sequence[datetime]) -> list[datetime]:
    """The rule of docs/schedules.md, for each minute: its local time matches, or was moved out of the gap."""
    minute, hour = cron.split()[:2]
    standard = min(moment.astimezone(zone).utcoffset() or timedelta() for moment in minutes)
    real_time = minute.startswith("*") or hour.startswith("*")
    times = set()
    for moment in minutes:
        local = moment.astimezone(zone)
        if real_time:
            times |= {moment} if matches(cron, local.replace(tzinfo=None)) else set()
            continue
        naive = moment.replace(tzinfo=None) + standard
        if matches(cron, naive):
            while naive.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None) != naive:
                naive += timedelta(minutes=1)
            times.add(naive.replace(tzinfo=zone).astimezone(UTC))
    return sorted(times)


def matches(cron: str, local: datetime) -> bool:
    return next(CronSim(cron, local - timedelta(seconds=1))) == local


@pytest.mark.parametrize("zone", ZONES)
def test_firings_match_the_documentation(zone: str) -> None:
    chance = random.Random(zone)  # noqa: S311
    for change in clock_changes(zone):
        minutes = [change + timedelta(minutes=minute) for minute in range(-5 * 60, 5 * 60)]
        for _ in range(3):
            expression = random_cron(chance, change, zone)
            times = Cron({"cron": expression, "timezone": zone}).after(change - timedelta(hours=3))
            window = list(takewhile(lambda time, end=change + timedelta(hours=3): time <= end, times))  # type: ignore[misc]
            wanted = expected(expression, ZoneInfo(zone), minutes)
            start, end = change - timedelta(hours=3), change + timedelta(hours=3)
            assert window == [time for time in wanted if start < time <= end], expression


@pytest.mark.parametrize(
    ("config", "after", "times"),
    [
        ({"cron": "* * * * *"}, "2026-01-01T00:00:30", ["2026-01-01T00:01:00", "2026-01-01T00:02:00"]),
        # Berlin changes from 02:00 to 03:00 on 29 March. Times in the gap fire right after it.
        (
            {"cron": "30 2 * * *", "timezone": "Europe/Berlin"},
            "2026-03-28T12:00:00",
            ["2026-03-29T01:00:00", "2026-03-30T00:30:00"],
        ),
        # It changes from 03:00 to 02:00 on 25 October. Repeated times fire once.
        (
            {"cron": "30 2 * * *", "timezone": "Europe/Berlin"},
            "2026-10-24T12:00:00",
            ["2026-10-25T00:30:00", "2026-10-26T01:30:00"],
        ),
        ({"cron": "0 9 29 2 *"}, "2026-01-01T00:00:00", ["2028-02-29T09:00:00", "2032-02-29T09:00:00"]),
    ],
)
def test_times_follow_the_wall_clock(config: dict[str, str], after: str, times: list[str]) -> None:
    firings = Cron(config).after(at(after))
    assert [next(firings) for _ in times] == [at(time) for time in times]


def test_the_newest_past_firing_is_found() -> None:
    cron = Cron({"cron": "0 9 * * *"})
    assert cron.last_before(at("2026-01-02T09:00:00")) == at("2026-01-02T09:00:00")
    assert cron.last_before(at("2026-01-02T08:59:59")) == at("2026-01-01T09:00:00")
