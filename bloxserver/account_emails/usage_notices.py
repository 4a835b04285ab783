"""Notices of usage: at 80 % and at 100 % of the included runs and of the storage, once in each billing period."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import Email, EmailKind
from bloxserver.clock import as_utc, iso_utc
from bloxserver.models.tables import StoredBytesRecord, UsageRecord, UserRecord
from bloxserver.plans import PLANS, Plan, get_plan
from bloxserver.queries.usage import RENEWAL, Period, period_at

THRESHOLDS = {100: EmailKind.USAGE_LIMIT, 80: EmailKind.USAGE_WARNING}
"""Percentages of a limit, the highest first."""
ROWS_AT_ONCE = 500
"""About 30 ms."""
RUNS, STORED_BYTES = "runs", "stored_bytes"

_USER = (
    UserRecord.tier,
    UserRecord.limits,
    UserRecord.billing_status,
    UserRecord.current_period_start,
    UserRecord.current_period_end,
)


async def find_notices(session: AsyncSession, moment: datetime) -> list[tuple[UUID, Email]]:
    """The notices that are due at this time, with their users; also those that were written before.

    Of the thresholds that a user has reached, the highest one counts.
    """
    found: list[tuple[UUID, Email]] = []
    async for row in _in_turns(await session.execute(runs_above_threshold(moment))):
        plan, period = _plan_and_period(row, moment)
        if as_utc(row.period_start) == period.start:
            found += _notice(row, RUNS, row.used, plan.runs, plan, period)
    async for row in _in_turns(await session.execute(storage_above_threshold())):
        plan, period = _plan_and_period(row, moment)
        found += _notice(row, STORED_BYTES, row.used, included_storage(plan), plan, period)
    return found


async def _in_turns(rows: Iterable[sa.Row[Any]]) -> AsyncIterator[sa.Row[Any]]:
    """The rows. Other tasks of the event loop have a turn after each `ROWS_AT_ONCE` of them."""
    for number, row in enumerate(rows, start=1):
        yield row
        if number % ROWS_AT_ONCE == 0:
            await asyncio.sleep(0)


def runs_above_threshold(moment: datetime) -> sa.Select[Any]:
    """Users whose runs may have reached a threshold. The columns of `users` tell whether they have.

    The end of a period may be assumed, and too early by the length of `RENEWAL`.
    """
    usage, user = UsageRecord, UserRecord
    used = sa.cast(sa.func.sum(usage.workflow_runs), sa.BigInteger)
    return (
        sa.select(user.id, usage.period_start, used.label("used"), *_USER)
        .join(user, user.id == usage.user_id)
        .where(usage.period_start <= moment, usage.period_end > moment - RENEWAL, user.deleted_at.is_(None))
        .group_by(user.id, usage.period_start)
        .having(used >= _least(lambda plan: plan.runs))
    )


def storage_above_threshold() -> sa.Select[Any]:
    """The same for the stored bytes."""
    stored, user = StoredBytesRecord, UserRecord
    used = sa.cast(sa.func.sum(stored.bytes), sa.BigInteger)
    return (
        sa.select(user.id, used.label("used"), *_USER)
        .join(user, user.id == stored.user_id)
        .where(user.deleted_at.is_(None))
        .group_by(user.id)
        .having(used >= _least(included_storage))
    )


def included_storage(plan: Plan) -> int:
    """The bytes that have no price."""
    if plan.included_stored_bytes is None or plan.storage_overage_usd_per_gb is None:
        return plan.stored_bytes
    return min(plan.included_stored_bytes, plan.stored_bytes)


def _least(limit_of: Callable[[Plan], int | None]) -> sa.ColumnElement[int]:
    """The amount at which the lowest threshold can be reached. Limits that an operator has set can be any."""
    lowest = min(THRESHOLDS)
    limits = {tier: limit_of(plan) for tier, plan in PLANS.items()}
    amounts = {tier: None if limit is None else limit * lowest // 100 for tier, limit in limits.items()}
    tiers = [(sa.type_coerce(UserRecord.tier, sa.String) == tier, amount) for tier, amount in amounts.items()]
    of_tier = sa.case(*((is_tier, sa.cast(amount, sa.BigInteger)) for is_tier, amount in tiers), else_=amounts["free"])
    return sa.case((UserRecord.limits.is_not(None), 0), else_=of_tier)


def _plan_and_period(row: sa.Row[Any], moment: datetime) -> tuple[Plan, Period]:
    plan = get_plan(row.tier, row.limits, row.billing_status)
    return plan, period_at(moment, row.current_period_start, row.current_period_end)


def _notice(
    row: sa.Row[Any], name: str, used: int, limit: int | None, plan: Plan, period: Period
) -> list[tuple[UUID, Email]]:
    """The notice of the highest threshold that is reached, if any is. A limit of 0 has none."""
    reached = [percent for percent in THRESHOLDS if limit and used * 100 >= limit * percent]
    if limit is None or not reached:
        return []
    percent = reached[0]
    data = {
        "limit": name,
        "percent": percent,
        "used": used,
        "maximum": limit,
        "plan": str(row.tier),
        "period_end": iso_utc(period.end),
        "usd_per_thousand": plan.overage_usd_per_thousand if name == RUNS else None,
        "usd_per_gb": plan.storage_overage_usd_per_gb if name == STORED_BYTES and limit < plan.stored_bytes else None,
    }
    return [(row.id, Email(THRESHOLDS[percent], key_of(name, percent, period.start), data))]


def key_of(name: str, percent: int, period_start: datetime) -> str:
    """The key of a notice."""
    return f"{name}:{percent}:{iso_utc(period_start)}"
