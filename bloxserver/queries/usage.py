"""A user's usage in a billing period."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import as_utc
from bloxserver.models.tables import UsageRecord
from bloxserver.plans import get_plan


@dataclass(frozen=True)
class Period:
    """A billing period, from `start` until before `end`, aware UTC."""

    start: datetime
    end: datetime


def period_at(now: datetime, known_start: datetime | None, known_end: datetime | None) -> Period:
    """The known Stripe period if it contains `now`, else the calendar month in UTC."""
    if known_start is not None and known_end is not None and as_utc(known_start) <= now < as_utc(known_end):
        return Period(as_utc(known_start), as_utc(known_end))
    start = datetime(now.year, now.month, 1, tzinfo=UTC)
    return Period(start, (start + timedelta(days=32)).replace(day=1))


@dataclass(frozen=True)
class Usage:
    """The usage that the dashboard shows."""

    period_start: datetime
    period_end: datetime
    runs_used: int
    runs_limit: int | None
    runs_percentage: float
    tokens_used: int
    estimated_overage: float
    days_remaining: int


async def read_usage(session: AsyncSession, user_id: UUID, tier: str, period: Period, now: datetime) -> Usage:
    """The user's usage in `period`, in one statement; `estimated_overage` is in USD."""
    row = (
        await session.execute(
            sa.select(
                sa.func.coalesce(sa.func.sum(UsageRecord.workflow_runs), 0),
                sa.func.coalesce(sa.func.sum(UsageRecord.llm_tokens_in + UsageRecord.llm_tokens_out), 0),
            ).where(UsageRecord.user_id == user_id, UsageRecord.period_start == period.start)
        )
    ).one()
    runs, tokens = int(row[0]), int(row[1])
    plan = get_plan(tier)
    over = max(0, runs - plan.runs) if plan.runs is not None else 0
    return Usage(
        period_start=period.start,
        period_end=period.end,
        runs_used=runs,
        runs_limit=plan.runs,
        runs_percentage=round(100 * runs / plan.runs, 2) if plan.runs else 0.0,
        tokens_used=tokens,
        estimated_overage=round(over * (plan.overage_usd_per_thousand or 0) / 1000, 4),
        days_remaining=max(0, math.ceil((period.end - now) / timedelta(days=1))),
    )
