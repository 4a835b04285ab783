from __future__ import annotations

import asyncio

import sqlalchemy as sa
from structlog.testing import capture_logs

from bloxserver.models.database import Database
from bloxserver.models.tables import RateCounterRecord
from bloxserver.services.rate_counters import KEPT_WINDOWS, SHARE_SECONDS, CounterSharing, DatabaseCounters
from bloxserver.services.rate_limits import RateLimiter
from tests.statements import count_statements

WINDOW = 1000


async def rows(database: Database) -> list[tuple[int, str, int]]:
    async with database.transaction(read_only=True) as session:
        found = await session.execute(
            sa.select(RateCounterRecord.minute, RateCounterRecord.key, RateCounterRecord.count).order_by(
                RateCounterRecord.minute, RateCounterRecord.key
            )
        )
        return [(minute, key, count) for minute, key, count in found]


def clock() -> float:
    return WINDOW * 60.0


async def test_counts_of_two_processes_are_added(live_database: Database) -> None:
    one, other = DatabaseCounters(live_database), DatabaseCounters(live_database)
    assert await one.add(WINDOW, {"a": 3, "b": 1}) == {"a": 3, "b": 1}
    assert await other.add(WINDOW, {"b": 5, "c": 2}) == {"b": 6, "c": 2}
    assert await other.add(WINDOW + 1, {"b": 1}) == {"b": 1}
    assert await rows(live_database) == [(WINDOW, "a", 3), (WINDOW, "b", 6), (WINDOW, "c", 2), (WINDOW + 1, "b", 1)]


async def test_concurrent_processes_lose_no_count(live_database: Database) -> None:
    names = [f"key-{number}" for number in range(20)]
    counts = [dict.fromkeys(names[::step], 1) for step in (1, -1)] * 10
    await asyncio.gather(*(DatabaseCounters(live_database).add(WINDOW, each) for each in counts))
    assert [count for _, _, count in await rows(live_database)] == [20] * 20


async def test_counters_of_past_windows_are_deleted(live_database: Database) -> None:
    counters = DatabaseCounters(live_database)
    for window in range(WINDOW, WINDOW + 5):
        await counters.add(window, {"a": 1})
    newest = WINDOW + 4
    assert [minute for minute, _, _ in await rows(live_database)] == list(range(newest - KEPT_WINDOWS, newest + 1))


async def test_limit_counts_requests_to_all_processes(live_database: Database) -> None:
    limiters = [RateLimiter(clock), RateLimiter(clock)]
    sharing = [CounterSharing(limiter, DatabaseCounters(live_database).add) for limiter in limiters]
    for limiter in limiters:
        assert [limiter.count("user", "u", 3).exceeded for _ in range(2)] == [False, False]
    assert [await each.share() for each in sharing] == [SHARE_SECONDS] * 2
    assert limiters[1].count("user", "u", 3).used == 5
    limiters[0].count("user", "u", 3)
    await sharing[0].share()
    assert limiters[0].count("user", "u", 3).used == 6


async def test_idle_process_uses_no_database(live_database: Database) -> None:
    limiter = RateLimiter(clock)
    sharing = CounterSharing(limiter, DatabaseCounters(live_database).add)
    limiter.count("user", "u", 3)
    await sharing.share()
    with count_statements(live_database.engine) as statements:
        await sharing.share()
    assert statements == []


async def test_failure_is_logged_once_and_loses_no_count() -> None:
    fails = True
    shared: list[int] = []

    async def add(window: int, counts: dict[str, int]) -> dict[str, int]:
        if fails:
            raise ConnectionError
        shared.extend(counts.values())
        return dict(counts)

    limiter = RateLimiter(clock)
    sharing = CounterSharing(limiter, add)  # type: ignore[arg-type]
    with capture_logs() as logs:
        for _ in range(3):
            limiter.count("user", "u", 10)
            limiter.count("webhook", "w", 10)
            await sharing.share()
        fails = False
        await sharing.share()
        await sharing.share()
    assert sorted(shared) == [3, 3]
    assert [line["event"] for line in logs] == [
        "rate limits count only requests to this process",
        "rate limits count requests to all processes again",
    ]
