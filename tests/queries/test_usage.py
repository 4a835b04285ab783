"""Usage of a user in a billing period, and the period."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import StorageSampleRecord, UsageRecord
from bloxserver.plans import FREE, get_plan
from bloxserver.queries.usage import RENEWAL, Period, period_at, read_previous_period, read_usage, read_usage_history
from tests.factories import create_user

TODAY = datetime(2026, 6, 15, tzinfo=UTC)
PERIOD = Period(TODAY - timedelta(days=10), TODAY + timedelta(days=20))


async def test_user_without_counts_has_used_nothing(session: AsyncSession) -> None:
    user, other = await create_user(session), await create_user(session)
    session.add(UsageRecord(user_id=other.id, period_start=PERIOD.start, workflow_runs=7, llm_tokens_in=8))
    await session.commit()
    usage = await read_usage(session, user.id, FREE, PERIOD, TODAY)
    assert (usage.runs_used, usage.tokens_used, usage.runs_percentage, usage.estimated_overage) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("remaining", "days"),
    [(timedelta(days=2), 2), (timedelta(seconds=1), 1), (timedelta(0), 0), (timedelta(days=-3), 0)],
)
async def test_remaining_days_are_rounded_up_and_never_negative(
    session: AsyncSession, remaining: timedelta, days: int
) -> None:
    user = await create_user(session)
    usage = await read_usage(session, user.id, FREE, PERIOD, PERIOD.end - remaining)
    assert usage.days_remaining == days


@pytest.mark.parametrize(
    ("tier", "runs", "limit", "percentage", "overage"),
    [
        ("free", 0, 1_000, 0, 0),
        ("free", 333, 1_000, 33.3, 0),
        ("free", 2_000, 1_000, 200, 0),
        ("pro", 100_000, 100_000, 100, 0),
        ("pro", 100_001, 100_000, 100, 0.0005),
        ("pro", 101_000, 100_000, 101, 0.5),
        ("pro", 3_100_000, 100_000, 3_100, 1_500),
        ("enterprise", 5_000_000, None, 0, 0),
        ("high_frequency", 7, None, 0, 0),
        ("unknown", 5, FREE.runs, 0.5, 0),
    ],
)
async def test_usage_sums_the_slots_of_the_period_and_compares_them_with_the_plan(
    session: AsyncSession, tier: str, runs: int, limit: int | None, percentage: float, overage: float
) -> None:
    user = await create_user(session)
    for start, slot, count in ((PERIOD.start, 0, runs - runs // 3), (PERIOD.start, 9, runs // 3), (TODAY, 0, 77)):
        tokens = {"llm_tokens_in": 3, "llm_tokens_out": 4}
        session.add(UsageRecord(user_id=user.id, period_start=start, slot=slot, workflow_runs=count, **tokens))
    await session.commit()
    usage = await read_usage(session, user.id, get_plan(tier), PERIOD, TODAY + timedelta(hours=5))
    assert (usage.runs_used, usage.runs_limit) == (runs, limit)
    assert (usage.runs_percentage, usage.estimated_overage) == (percentage, overage)
    assert (usage.tokens_used, usage.days_remaining) == (14, 20)
    assert (usage.period_start, usage.period_end) == (PERIOD.start, PERIOD.end)


@pytest.mark.parametrize(
    ("tier", "megabytes", "included", "overage"),
    [
        ("pro", (1_000,) * 10, 10**10, 0.0333),
        ("pro", (0, 30_000), 10**10, 0.1),
        ("pro", (), 10**10, 0),
        ("free", (7_000,), None, 0),
    ],
)
async def test_price_of_storage_is_that_of_the_samples_of_the_period(
    session: AsyncSession, tier: str, megabytes: tuple[int, ...], included: int | None, overage: float
) -> None:
    user, other = await create_user(session), await create_user(session)
    values = {"bytes": 1, "period_start": PERIOD.start}
    for number, billed in enumerate(megabytes):
        day = {"day": TODAY.date() - timedelta(days=number), "billed_megabytes": billed}
        session.add_all(StorageSampleRecord(user_id=owner.id, **values | day) for owner in (user, other))
    before = {"day": PERIOD.start.date() - timedelta(days=1), "period_start": PERIOD.start - timedelta(days=30)}
    session.add(StorageSampleRecord(user_id=user.id, **values | before, billed_megabytes=9_999))
    await session.commit()
    usage = await read_usage(session, user.id, get_plan(tier), PERIOD, TODAY)
    assert (usage.included_stored_bytes, usage.storage_overage) == (included, overage)
    assert usage.estimated_overage == 0


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


JUNE = Period(utc(2026, 6, 1), utc(2026, 7, 1))
STRIPE = (utc(2026, 5, 20, 8, 30), utc(2026, 6, 20, 8, 30))
AFTER = Period(utc(2026, 6, 20, 8, 30), utc(2026, 7, 21, 8, 30))


@pytest.mark.parametrize(
    ("now", "known", "expected"),
    [
        (utc(2026, 6, 10), STRIPE, Period(*STRIPE)),
        (STRIPE[0], STRIPE, Period(*STRIPE)),
        (STRIPE[1] - timedelta(microseconds=1), STRIPE, Period(*STRIPE)),
        (STRIPE[1], STRIPE, AFTER),
        (STRIPE[1] + RENEWAL - timedelta(microseconds=1), STRIPE, AFTER),
        (STRIPE[1] + RENEWAL, STRIPE, JUNE),
        (utc(2026, 6, 10), (utc(2026, 6, 11), utc(2026, 6, 9)), JUNE),
        (utc(2026, 6, 30, 23, 59, 59), STRIPE, JUNE),
        (utc(2026, 6, 10), (None, None), JUNE),
        (utc(2026, 6, 10), (STRIPE[0], None), JUNE),
        (utc(2026, 6, 10), (None, STRIPE[1]), JUNE),
        (utc(2026, 6, 10), (utc(2026, 6, 11), utc(2026, 7, 11)), JUNE),
        (utc(2026, 6, 10), (datetime(2026, 6, 1), datetime(2026, 7, 1)), JUNE),  # noqa: DTZ001
        (utc(2026, 6, 1), (None, None), JUNE),
        (utc(2026, 12, 31, 23, 59, 59), (None, None), Period(utc(2026, 12, 1), utc(2027, 1, 1))),
        (utc(2027, 1, 1), (None, None), Period(utc(2027, 1, 1), utc(2027, 2, 1))),
        (utc(2026, 1, 31), (None, None), Period(utc(2026, 1, 1), utc(2026, 2, 1))),
        (utc(2028, 2, 29), (None, None), Period(utc(2028, 2, 1), utc(2028, 3, 1))),
    ],
)
def test_period_is_the_known_one_then_the_next_one_and_else_the_month(
    now: datetime, known: tuple[datetime | None, datetime | None], expected: Period
) -> None:
    assert period_at(now, *known) == expected


async def test_history_has_the_last_periods_with_usage(session: AsyncSession) -> None:
    user, other = await create_user(session), await create_user(session)
    for month in (3, 4, 6):
        start = datetime(2026, month, 1, tzinfo=UTC)
        for slot in (0, 5):
            counts = {"workflow_runs": month, "llm_tokens_in": 10 * month, "llm_tokens_out": 1}
            values = {"period_start": start, "period_end": start + timedelta(days=28), "slot": slot, **counts}
            session.add_all(UsageRecord(user_id=owner.id, **values) for owner in (user, other))
    await session.commit()
    rows = await read_usage_history(session, user.id, 2)
    assert [(row.period_start.month, row.runs, row.input_tokens, row.output_tokens) for row in rows] == [
        (6, 12, 120, 2),
        (4, 8, 80, 2),
    ]
    assert rows[0].period_end == datetime(2026, 6, 29, tzinfo=UTC)
    assert await read_usage_history(session, (await create_user(session)).id, 2) == []


async def test_previous_period_is_the_last_one_with_usage(session: AsyncSession) -> None:
    user, other = await create_user(session), await create_user(session)
    month, before = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
    session.add(UsageRecord(user_id=other.id, period_start=datetime(2026, 5, 20, tzinfo=UTC)))
    await session.commit()
    assert await read_previous_period(session, user.id, Period(month, TODAY)) == Period(
        datetime(2026, 5, 1, tzinfo=UTC), month
    )
    assert await read_previous_period(session, user.id, PERIOD) == Period(month, PERIOD.start)
    may = datetime(2026, 5, 1, tzinfo=UTC)
    session.add_all(
        UsageRecord(user_id=user.id, period_start=start, period_end=end, slot=slot)
        for start, end, slot in ((before, may, 0), (before, may, 1), (may, month, 0), (PERIOD.start, PERIOD.end, 0))
    )
    await session.commit()
    assert await read_previous_period(session, user.id, PERIOD) == Period(may, month)
    assert await read_previous_period(session, user.id, Period(may, month)) == Period(before, may)
    # A subscription began within the month.
    assert (await read_previous_period(session, user.id, Period(may + timedelta(days=9), month))).end.day == 10
