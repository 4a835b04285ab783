"""Compares usage with the sums of Stripe's meters, and repairs what can be repaired without counting it twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.client import Stripe, StripeUnavailable
from bloxserver.billing.comparison import SETTLED, Decisions, PeriodUsage, decide, read_period_usage, sum_of
from bloxserver.billing.meter import read_meter_id, read_sum
from bloxserver.billing.metering import MINUTE, PeriodKey, cut_period
from bloxserver.billing.prices import METERS, RUNS_METER
from bloxserver.billing.reports import ACCEPTED_DAYS, send_due
from bloxserver.billing.sync import sync_customer
from bloxserver.clock import now
from bloxserver.errors import BloxError
from bloxserver.models.database import Database
from bloxserver.models.tables import BillingPeriodRecord, MeterReportRecord, UserRecord

log = structlog.stdlib.get_logger("bloxserver.billing")

INTERVAL = timedelta(hours=24)
RETRY = timedelta(hours=1)
"""When a comparison in the background is repeated that has not ended."""
PAGE = 100
MAX_CONSECUTIVE_FAILURES = 3


@dataclass(frozen=True)
class Result:
    """A compared period of one meter."""

    usage: PeriodUsage
    at_stripe: int
    """Stripe's sum, with the reports that were sent after it was read."""
    differs: bool
    resent: int = 0
    """Reports that Stripe lacked, and that were sent again; with a dry run, those that would be."""
    confirmed: int = 0
    """Reports of unknown outcome that Stripe has."""

    def __str__(self) -> str:
        usage = self.usage
        numbers = f"counted {usage.counted}, cut {usage.cut}, reported {usage.reported}, sent {usage.sent}"
        start = usage.key.start.isoformat(timespec="seconds")
        name = METERS[usage.meter]
        text = f"user {usage.key.user_id}, period from {start}, {name}: {numbers}, at Stripe {self.at_stripe}"
        return f"{text}; sent again {self.resent}, confirmed {self.confirmed}"


@dataclass(frozen=True)
class Comparison:
    """Usage before and after Stripe's sum was read. Usage is counted and sent meanwhile."""

    moment: datetime
    before: PeriodUsage
    after: PeriodUsage
    at_stripe: int

    def differs(self, settled: timedelta) -> bool:
        """Whether usage is missing in a report or at Stripe, or is too much there."""
        before, after = self.before, self.after
        if not before.counted <= after.cut <= after.counted or after.cut != after.reported:
            return True
        if any(report.is_overdue(self.moment) for report in after.reports):
            return True
        certain = (report for report in before.dated if report.sent_at is not None)
        lowest = sum_of(report for report in certain if report.is_settled(self.moment - settled))
        highest = sum_of(one for one in after.dated if one.may_be_at_stripe)
        return not lowest <= self.at_stripe <= highest


class Reconciler:
    def __init__(self, database: Database, stripe: Stripe, *, settled: timedelta = SETTLED) -> None:
        """`settled` is the time within which Stripe adds an accepted event to its sum."""
        self._database = database
        self._stripe = stripe
        self._settled = settled
        self._meter_ids: dict[str, str] = {}

    async def reconcile_all(self, *, dry_run: bool = False) -> AsyncIterator[Result]:
        """Compare the current and the previous periods of all users, and older ones with unsent reports."""
        async with self._database.transaction(read_only=True) as session:
            keys = await read_compared_periods(session, now())
        for key, meter in _by_meter(keys):
            result = await self.reconcile(key, meter, dry_run=dry_run)
            if result is not None:
                yield result

    async def reconcile_due(self) -> None:
        """Compare the periods that no process has compared for a day. Raises what `reconcile` raises."""
        while True:
            moment = now()
            async with self._database.transaction() as session:
                keys = await claim_periods(session, moment)
            for key, meter in _by_meter(keys):
                result = await self.reconcile(key, meter)
                if result is not None and result.differs:
                    log.error("usage differs from that at Stripe", difference=str(result))
            for key in keys:
                async with self._database.transaction() as session:
                    await set_reconciled(session, key, moment)
            if len(keys) < PAGE:
                return

    async def reconcile(self, key: PeriodKey, meter: str, *, dry_run: bool = False) -> Result | None:
        """Compare one period, after its usage is put into reports and sent; None if there is no such period.

        Raises `StripeUnavailable`, and `Unavailable` if there is no meter.
        """
        before = await self._read(key, meter)
        if before is None:
            return None
        moment = now()
        if not dry_run:
            if meter == RUNS_METER:
                async with self._database.transaction() as session:
                    await cut_period(session, key, skip_locked=False)
            await send_due(self._database, self._stripe)
        compared = await self._compare(before, moment)
        if not compared.differs(self._settled):
            return Result(compared.after, compared.at_stripe, differs=False)

        async def read(start: int, end: int) -> int:
            return await self._sum(compared.after, start, end)

        decisions = await decide(compared.after, read, moment, self._settled)
        missing, accepted = len(decisions.missing), len(decisions.accepted)
        if dry_run or not (missing or accepted):
            return Result(compared.after, compared.at_stripe, True, missing, accepted)
        async with self._database.transaction() as session:
            await apply(session, decisions, moment)
        await send_due(self._database, self._stripe)
        after = await self._read(key, meter) or compared.after
        sent = {report.id for report in (*after.reports, *after.dated) if report.sent_at is not None}
        at_stripe = compared.at_stripe + sum_of(report for report in decisions.missing if report.id in sent)
        repaired = Comparison(moment, compared.before, after, at_stripe)
        return Result(after, at_stripe, repaired.differs(self._settled), missing, accepted)

    async def _compare(self, before: PeriodUsage, moment: datetime) -> Comparison:
        """Compare with Stripe's sum of the period until now."""
        started = await self._read(before.key, before.meter) or before
        # A report can be dated to the next whole minute.
        until = min(started.last, (int(moment.timestamp()) // MINUTE + 2) * MINUTE)
        at_stripe = await self._sum(started, started.first, until) if until > started.first else 0
        after = await self._read(before.key, before.meter) or started
        return Comparison(moment, replace(started, counted=before.counted), after, at_stripe)

    async def _read(self, key: PeriodKey, meter: str) -> PeriodUsage | None:
        async with self._database.transaction(read_only=True) as session:
            return await read_period_usage(session, key, meter)

    async def _sum(self, usage: PeriodUsage, start: int, end: int) -> int:
        meter = usage.meter
        if meter not in self._meter_ids:
            self._meter_ids[meter] = await read_meter_id(self._stripe, meter)
        return await read_sum(self._stripe, self._meter_ids[meter], usage.customer_id, start, end)

    async def sync_customers(self, *, only_due: bool = False) -> tuple[int, int]:
        """Read customers from Stripe; returns how many were read, and how many could not be read.

        With `only_due`, those that were not read for a day, or since their period or their grace has ended. Raises
        `StripeUnavailable` if Stripe does not answer three times in a row.
        """
        read = failed = consecutive = 0
        async with self._database.transaction(read_only=True) as session:
            customers = await read_customers(session, now(), only_due=only_due)
        for customer_id in customers:
            async with self._database.transaction(read_only=True) as session:
                is_left = not only_due or await read_customers(session, now(), only_due=True, customer_id=customer_id)
            if not is_left:  # another process has read it
                continue
            try:
                async with self._database.transaction() as session:
                    await sync_customer(session, self._stripe, customer_id)
                read += 1
                consecutive = 0
            except BloxError as error:
                failed += 1
                consecutive += isinstance(error, StripeUnavailable) and not error.is_final
                if consecutive == MAX_CONSECUTIVE_FAILURES:
                    raise
                log.warning("customer not read from Stripe", customer=customer_id, error=error.code)
        return read, failed


def _by_meter(keys: Sequence[PeriodKey]) -> list[tuple[PeriodKey, str]]:
    """Each period with each meter. If a meter does not exist, the others are compared before the error."""
    return [(key, meter) for meter in METERS for key in keys]


async def apply(session: AsyncSession, decisions: Decisions, moment: datetime) -> None:
    """Let missing reports be sent again, with the same identifiers, and mark those that Stripe has as sent."""
    report = MeterReportRecord
    changes = (
        (decisions.missing, {"due_at": moment, "sent_at": None, "uncertain_since": None, "error": None}),
        (decisions.accepted, {"due_at": None, "sent_at": moment, "error": None}),
    )
    for reports, values in changes:
        for start in range(0, len(reports), PAGE):
            ids = [one.id for one in reports[start : start + PAGE]]
            await session.execute(
                sa.update(report)
                .where(report.id.in_(ids), report.due_at.is_(None))
                .values(values)
                .execution_options(synchronize_session=False)
            )


async def read_compared_periods(session: AsyncSession, moment: datetime) -> Sequence[PeriodKey]:
    """The periods that are compared, by user."""
    period = BillingPeriodRecord
    rows = await session.execute(
        sa.select(period.user_id, period.period_start)
        .where(_is_compared(moment))
        .order_by(period.user_id, period.period_start)
    )
    return [PeriodKey(*row) for row in rows]


async def claim_periods(session: AsyncSession, moment: datetime) -> Sequence[PeriodKey]:
    """Periods that are to be compared now, by this process alone, unless it does not end that within `RETRY`."""
    period = BillingPeriodRecord
    last = sa.func.coalesce(period.reconciled_at, period.created_at)
    rows = await session.execute(
        sa.select(period)
        .where(_is_compared(moment), last < moment - INTERVAL)
        .order_by(period.user_id, period.period_start)
        .limit(PAGE)
        .with_for_update(skip_locked=True)
    )
    claimed = rows.scalars().all()
    for row in claimed:
        row.reconciled_at = moment - INTERVAL + RETRY
    await session.flush()
    return [PeriodKey(row.user_id, row.period_start) for row in claimed]


async def set_reconciled(session: AsyncSession, key: PeriodKey, moment: datetime) -> None:
    """Record when the comparison of a period began."""
    period = BillingPeriodRecord
    await session.execute(
        sa.update(period)
        .where(period.user_id == key.user_id, period.period_start == key.start)
        .values(reconciled_at=moment)
        .execution_options(synchronize_session=False)
    )


def _is_compared(moment: datetime) -> sa.ColumnElement[bool]:
    period, report = BillingPeriodRecord, MeterReportRecord
    has_unsent = sa.exists().where(
        report.sent_at.is_(None), report.user_id == period.user_id, report.period_start == period.period_start
    )
    return sa.or_(period.period_end > moment - ACCEPTED_DAYS, has_unsent)


async def read_customers(
    session: AsyncSession, moment: datetime, *, only_due: bool, customer_id: str | None = None
) -> Sequence[str]:
    """Customers of Stripe, in random order, so that several processes do not read the same ones."""
    user = UserRecord
    conditions: list[sa.ColumnElement[bool]] = [user.stripe_customer_id.is_not(None)]
    if customer_id is not None:
        conditions.append(user.stripe_customer_id == customer_id)
    if only_due:
        ended = (
            sa.and_(user.stripe_synced_at < end, end < moment) for end in (user.current_period_end, user.grace_ends_at)
        )
        last = sa.func.coalesce(user.stripe_synced_at, user.updated_at)
        conditions.append(sa.or_(last < moment - INTERVAL, *ended))
    found = await session.scalars(sa.select(user.stripe_customer_id).where(*conditions).order_by(sa.func.random()))
    return [customer for customer in found if customer is not None]
