"""A user's usage in a billing period."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import as_utc
from bloxserver.models.tables import (
    ApiKeyRecord,
    FlowRecord,
    SecretRecord,
    StorageSampleRecord,
    StoredBytesRecord,
    TriggerRecord,
    UsageRecord,
)
from bloxserver.plans import GIGABYTE, MEGABYTE, Plan
from bloxserver.queries.requesters import owned_by


@dataclass(frozen=True)
class Period:
    """A billing period, from `start` until before `end`, aware UTC."""

    start: datetime
    end: datetime


DAYS_OF_PRICE = 30
"""For how many days a gigabyte is kept for its price."""
RENEWAL = timedelta(days=3)
"""For how long the next period is assumed to follow the known one. Stripe repeats the event of a renewal for 3 days."""


def period_at(now: datetime, known_start: datetime | None, known_end: datetime | None) -> Period:
    """The known Stripe period if it contains `now`, the one after it shortly after its end, else the month in UTC.

    Until the event of a renewal arrives, runs count for the period that it will announce: it starts when the known one
    ends. Otherwise they would be in the row of a calendar month, which is not billed.
    """
    if known_start is not None and known_end is not None:
        start, end = as_utc(known_start), as_utc(known_end)
        if start <= now < end:
            return Period(start, end)
        if start < end <= now < end + RENEWAL:
            return Period(end, end + max(end - start, RENEWAL))
    start = datetime(now.year, now.month, 1, tzinfo=UTC)
    return Period(start, (start + timedelta(days=32)).replace(day=1))


class LimitUse(NamedTuple):
    """A limit of the plan. `name` is the attribute of `Plan`."""

    name: str
    used: int
    limit: int | None
    """None if unlimited."""


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
    stored_bytes: int
    stored_bytes_limit: int
    included_stored_bytes: int | None
    storage_overage: float
    limits: Sequence[LimitUse]


def stored_bytes_of(user_id: UUID | sa.SQLColumnExpression[UUID]) -> sa.ScalarSelect[int]:
    """The bytes that a user stores, for use in another statement."""
    total = sa.func.coalesce(sa.func.sum(StoredBytesRecord.bytes), 0)
    return sa.select(sa.cast(total, sa.BigInteger)).where(StoredBytesRecord.user_id == user_id).scalar_subquery()


async def read_stored_bytes(session: AsyncSession, user_id: UUID) -> int:
    return (await session.execute(sa.select(stored_bytes_of(user_id)))).scalar_one()


def _counts(user_id: UUID) -> dict[str, sa.ScalarSelect[int]]:
    """What the user has of each limit that counts rows. Triggers are those of the flow that has most of them."""
    flows = sa.select(sa.func.count()).select_from(FlowRecord).where(owned_by(user_id))
    secrets = sa.select(sa.func.count()).select_from(SecretRecord).where(SecretRecord.user_id == user_id)
    keys = sa.select(sa.func.count()).select_from(ApiKeyRecord).where(ApiKeyRecord.user_id == user_id)
    triggers = (
        sa.select(sa.func.count().label("number"))
        .select_from(TriggerRecord)
        .join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
        .where(owned_by(user_id), TriggerRecord.deleted_at.is_(None))
        .group_by(TriggerRecord.flow_id)
        .subquery()
    )
    return {
        "flows": flows.scalar_subquery(),
        "triggers_per_flow": sa.select(sa.func.coalesce(sa.func.max(triggers.c.number), 0)).scalar_subquery(),
        "secrets": secrets.scalar_subquery(),
        "api_keys": keys.scalar_subquery(),
        "stored_bytes": stored_bytes_of(user_id),
    }


async def read_usage(session: AsyncSession, user_id: UUID, plan: Plan, period: Period, now: datetime) -> Usage:
    """The user's usage in `period`, in one statement; `estimated_overage` and `storage_overage` are in USD."""
    sample = StorageSampleRecord
    sampled = sa.select(sa.func.coalesce(sa.func.sum(sample.billed_megabytes), 0)).where(
        sample.user_id == user_id, sample.period_start == period.start
    )
    row = (
        await session.execute(
            sa.select(
                sa.func.coalesce(sa.func.sum(UsageRecord.workflow_runs), 0),
                sa.func.coalesce(sa.func.sum(UsageRecord.llm_tokens_in + UsageRecord.llm_tokens_out), 0),
                *(count.label(name) for name, count in _counts(user_id).items()),
                sampled.scalar_subquery().label("megabyte_days"),
            ).where(UsageRecord.user_id == user_id, UsageRecord.period_start == period.start)
        )
    ).one()
    runs, tokens = int(row[0]), int(row[1])
    gigabyte_days = int(row.megabyte_days) * MEGABYTE / GIGABYTE
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
        stored_bytes=row.stored_bytes,
        stored_bytes_limit=plan.stored_bytes,
        included_stored_bytes=plan.included_stored_bytes,
        storage_overage=round(gigabyte_days * (plan.storage_overage_usd_per_gb or 0) / DAYS_OF_PRICE, 4),
        limits=[
            LimitUse("runs", runs, plan.runs),
            *(LimitUse(name, getattr(row, name), getattr(plan, name)) for name in _counts(user_id)),
        ],
    )


async def read_previous_period(session: AsyncSession, user_id: UUID, current: Period) -> Period:
    """The user's last period with usage before the current one; the calendar month before it if there is none.

    It ends before the current one starts: a subscription can begin within a calendar month.
    """
    wanted = (
        sa.select(UsageRecord.period_start, UsageRecord.period_end)
        .where(UsageRecord.user_id == user_id, UsageRecord.period_start < current.start)
        .order_by(UsageRecord.period_start.desc())
    )
    found = (await session.execute(wanted.limit(1))).first()
    if found is None:
        return Period(period_at(current.start - timedelta(microseconds=1), None, None).start, current.start)
    return Period(found.period_start, min(found.period_end or current.start, current.start))


async def read_usage_history(session: AsyncSession, user_id: UUID, periods: int) -> list[sa.Row[Any]]:
    """What the user used in each of their last billing periods with usage, the newest first."""
    usage = UsageRecord
    sums = {"runs": usage.workflow_runs, "input_tokens": usage.llm_tokens_in, "output_tokens": usage.llm_tokens_out}
    columns: list[Any] = [usage.period_start, sa.func.max(usage.period_end).label("period_end")]
    columns += [sa.cast(sa.func.sum(column), sa.BigInteger).label(name) for name, column in sums.items()]
    rows = await session.execute(
        sa.select(*columns)
        .where(usage.user_id == user_id)
        .group_by(usage.period_start)
        .order_by(usage.period_start.desc())
        .limit(periods)
    )
    return list(rows.all())
