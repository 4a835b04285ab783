"""Compares the reports of a billed period with what Stripe has summed, and decides which of them Stripe lacks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.metering import MINUTE, PeriodKey, whole_minutes
from bloxserver.billing.prices import RUNS_METER
from bloxserver.billing.reports import ACCEPTED_DAYS, ATTEMPT, MARGIN
from bloxserver.models.tables import (
    BillingPeriodRecord,
    MeterReportRecord,
    StorageSampleRecord,
    UsageRecord,
    UserRecord,
)

SETTLED = timedelta(hours=1)
"""Stripe adds an accepted event to its sum within this time."""

ReadSum = Callable[[int, int], Awaitable[int]]
"""Reads Stripe's sum of the customer from a second until before another, both beginnings of minutes."""


@dataclass(frozen=True)
class Report:
    id: UUID
    value: int
    timestamp: datetime
    due_at: datetime | None
    uncertain_since: datetime | None
    sent_at: datetime | None
    error: str | None
    created_at: datetime

    @property
    def is_refused(self) -> bool:
        """Whether Stripe certainly lacks it, and nothing sends it."""
        return self.sent_at is None and self.due_at is None and self.uncertain_since is None

    @property
    def may_be_at_stripe(self) -> bool:
        return self.sent_at is not None or self.uncertain_since is not None

    def is_overdue(self, moment: datetime) -> bool:
        """Whether it failed, or was not sent until now. Another process may be sending a new one."""
        return self.sent_at is None and (self.error is not None or self.created_at <= moment - ATTEMPT)

    def is_settled(self, before: datetime) -> bool:
        """Whether nothing sends it, and it is in Stripe's sum if Stripe has accepted it."""
        return self.due_at is None and (self.sent_at is None or self.sent_at <= before)


@dataclass(frozen=True)
class PeriodUsage:
    """The usage of a billed period that one meter counts, and what became of it.

    Its units are runs, or megabytes that were stored for a day.
    """

    key: PeriodKey
    meter: str
    """The name of its events."""
    first: int
    last: int
    """The whole minutes of the period, in seconds since 1970."""
    customer_id: str
    counted: int
    """The runs that were accepted; those in reports, if the user is deleted or the period is not paid. Of storage, what
    was sampled.
    """
    cut: int
    """What is in reports, by the counters or samples."""
    reported: int
    """What is in reports."""
    reports: Sequence[Report]
    dated: Sequence[Report]
    """All reports of the customer to the meter whose time is in the whole minutes of the period. Stripe sums these."""

    @property
    def sent(self) -> int:
        return sum_of(report for report in self.reports if report.sent_at is not None)


def sum_of(reports: Any) -> int:
    return sum(report.value for report in reports)


async def read_period_usage(session: AsyncSession, key: PeriodKey, meter: str) -> PeriodUsage | None:
    """The usage of a period; None if it was deleted."""
    period, report = BillingPeriodRecord, MeterReportRecord
    counted_column, cut_column = _counters(key, meter)
    of_meter = report.user_id == key.user_id, report.event_name == meter
    of_period = *of_meter, report.period_start == key.start
    user = sa.select(UserRecord.id).where(UserRecord.id == key.user_id)
    # One statement, because other processes put runs into reports meanwhile.
    row = (
        await session.execute(
            sa.select(
                period.period_end,
                period.customer_id,
                period.is_billed,
                counted_column.label("counted"),
                cut_column.label("cut"),
                _total(report.value, *of_period).label("reported"),
                user.scalar_subquery().label("user_id"),
            ).where(period.user_id == key.user_id, period.period_start == key.start)
        )
    ).first()
    if row is None:
        return None
    counted, cut, reported = int(row.counted), int(row.cut), int(row.reported)
    if row.user_id is None and meter == RUNS_METER:
        counted = cut = reported  # their counters are deleted
    elif not row.is_billed:
        counted = cut
    first, last = whole_minutes(key.start, row.period_end)
    times = (datetime.fromtimestamp(seconds, UTC) for seconds in (first, last))
    dated = report.customer_id == row.customer_id, report.timestamp >= next(times), report.timestamp < next(times)
    return PeriodUsage(
        key,
        meter,
        first,
        last,
        row.customer_id,
        counted,
        cut,
        reported,
        reports=await _read_reports(session, *of_period),
        dated=await _read_reports(session, *of_meter, *dated),
    )


def _counters(key: PeriodKey, meter: str) -> tuple[sa.ScalarSelect[int], sa.ScalarSelect[int]]:
    """What was counted in the period, and what of it was put into reports. A sample is written with its report."""
    if meter == RUNS_METER:
        usage = UsageRecord
        of_period = usage.user_id == key.user_id, usage.period_start == key.start
        return _total(usage.workflow_runs, *of_period), _total(usage.last_synced_runs, *of_period)
    sample = StorageSampleRecord
    sampled = _total(sample.billed_megabytes, sample.user_id == key.user_id, sample.period_start == key.start)
    return sampled, sampled


def _total(column: Any, *conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.coalesce(sa.func.sum(column), 0)).where(*conditions).scalar_subquery()


async def _read_reports(session: AsyncSession, *conditions: sa.ColumnElement[bool]) -> Sequence[Report]:
    columns = (getattr(MeterReportRecord, name) for name in Report.__dataclass_fields__)
    rows = await session.execute(sa.select(*columns).where(*conditions))
    return [Report(*row) for row in rows]


@dataclass
class Decisions:
    """What is known of reports after a comparison."""

    missing: list[Report] = field(default_factory=list)
    """Stripe lacks them, and nothing sends them."""
    accepted: list[Report] = field(default_factory=list)
    """Stripe has them, which was unknown."""


async def decide(usage: PeriodUsage, read_sum: ReadSum, moment: datetime, settled: timedelta) -> Decisions:
    """Find the reports that Stripe lacks, and those of unknown outcome that it has.

    Stripe does not list events. So the sums of ever shorter times are compared, down to minutes. What they leave open
    stays as it is.
    """
    decisions = Decisions()
    oldest = moment - ACCEPTED_DAYS + MARGIN
    decisions.missing += [report for report in usage.reports if report.is_refused and report.timestamp > oldest]

    async def search(reports: Sequence[Report], start: int, end: int) -> None:
        if not reports:
            return
        if all(report.is_settled(moment - settled) for report in reports):
            total = await read_sum(start, end)
            unknown = [report for report in reports if report.sent_at is None]
            sent = sum_of(report for report in reports if report.sent_at is not None)
            if total == sum_of(reports):
                decisions.accepted += unknown
                return
            if total in (sent, 0):
                lacking = unknown if total == sent else reports
                decisions.missing += [report for report in lacking if report.timestamp > oldest]
                return
        middle = (start + end) // 2 // MINUTE * MINUTE
        if middle > start:
            await search([one for one in reports if one.timestamp.timestamp() < middle], start, middle)
            await search([one for one in reports if one.timestamp.timestamp() >= middle], middle, end)

    await search([report for report in usage.dated if not report.is_refused], usage.first, usage.last)
    return decisions
