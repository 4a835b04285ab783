"""Turns counted runs into reports to Stripe's meter, each run into one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.prices import RUNS_METER
from bloxserver.clock import as_utc
from bloxserver.models.tables import BillingPeriodRecord, MeterReportRecord, UsageRecord
from bloxserver.models.types import database_now

KEPT = timedelta(days=100)
"""How long after a period its usage and its reports are looked at. Stripe accepts usage for 35 days."""
MINUTE = 60


class PeriodKey(NamedTuple):
    """The billed period of a user."""

    user_id: UUID
    start: datetime


async def read_uncut_periods(session: AsyncSession, moment: datetime) -> Sequence[PeriodKey]:
    """Billed periods with runs that are in no report."""
    period, usage = BillingPeriodRecord, UsageRecord
    uncut = sa.exists().where(
        usage.user_id == period.user_id,
        usage.period_start == period.period_start,
        usage.workflow_runs > usage.last_synced_runs,
    )
    rows = await session.execute(
        sa.select(period.user_id, period.period_start)
        .where(period.is_billed, period.period_end > moment - KEPT, uncut)
        .order_by(period.user_id, period.period_start)
    )
    return [PeriodKey(*row) for row in rows]


async def read_periods_of(session: AsyncSession, user_id: UUID) -> Sequence[PeriodKey]:
    """All billed periods of a user."""
    period = BillingPeriodRecord
    rows = await session.execute(
        sa.select(period.user_id, period.period_start).where(period.user_id == user_id, period.is_billed)
    )
    return [PeriodKey(*row) for row in rows]


async def cut_period(session: AsyncSession, key: PeriodKey, *, skip_locked: bool = True) -> int:
    """Report all runs of the period that are in no report yet. Returns their number.

    The lock of the period's row lets one process do it at a time. With `skip_locked`, others do nothing meanwhile.
    """
    period = await session.scalar(
        sa.select(BillingPeriodRecord)
        .where(
            BillingPeriodRecord.user_id == key.user_id,
            BillingPeriodRecord.period_start == key.start,
            BillingPeriodRecord.is_billed,
        )
        .with_for_update(skip_locked=skip_locked)
        .execution_options(populate_existing=True)
    )
    if period is None:
        return 0
    moment = as_utc((await session.execute(sa.select(database_now()))).scalar_one())
    usage = UsageRecord
    of_period = usage.user_id == key.user_id, usage.period_start == key.start
    reported = sa.select(sa.func.coalesce(sa.func.sum(usage.last_synced_runs), 0)).where(*of_period)
    low = int((await session.execute(reported)).scalar_one())
    # This reads each counter again after it has waited for runs that are being accepted.
    await session.execute(
        sa.update(usage)
        .where(*of_period, usage.workflow_runs > usage.last_synced_runs)
        .values(last_synced_runs=usage.workflow_runs, last_synced_at=moment)
        .execution_options(synchronize_session=False)
    )
    high = int((await session.execute(reported)).scalar_one())
    if high == low:
        return 0
    session.add(
        MeterReportRecord(
            user_id=key.user_id,
            period_start=key.start,
            customer_id=period.customer_id,
            event_name=RUNS_METER,
            identifier=f"runs:{key.user_id}:{int(key.start.timestamp())}:{low}-{high}",
            value=high - low,
            timestamp=time_in_period(moment, key.start, period.period_end),
            due_at=moment,
        )
    )
    await session.flush()
    return high - low


def time_in_period(moment: datetime, start: datetime, end: datetime) -> datetime:
    """The time at which usage is reported: now, but within the whole minutes of its period.

    Stripe sums usage for whole minutes. In a minute with the end of a period, a sum would be that of two periods.
    """
    first, last = whole_minutes(start, end)
    seconds = max(first, min(int(moment.timestamp()), last - 1))
    return datetime.fromtimestamp(seconds, UTC)


def whole_minutes(start: datetime, end: datetime) -> tuple[int, int]:
    """The start of the first and the end of the last whole minute of a period, in seconds since 1970."""
    return -(-int(start.timestamp()) // MINUTE) * MINUTE, int(end.timestamp()) // MINUTE * MINUTE
