"""Sends reports to Stripe's meter: any number of processes, each report counts once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.client import Stripe
from bloxserver.billing.meter import Answer, Outcome, send_event
from bloxserver.billing.metering import KEPT
from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import MeterReportRecord
from bloxserver.observability import metrics

log = structlog.stdlib.get_logger("bloxserver.billing")

BATCH = 20
"""Reports that a process sends concurrently."""
ATTEMPT = timedelta(minutes=5)
"""Longer than any attempt takes. An attempt without a result by then is repeated by any process."""
FIRST_BACKOFF = timedelta(seconds=30)
MAX_BACKOFF = timedelta(hours=1)
MAX_EXPONENT = 10
PROTECTED = timedelta(hours=20)
"""How long a report of unknown outcome is repeated. Stripe refuses a second event for at least 24 hours."""
ACCEPTED_DAYS = timedelta(days=35)
"""How old an event can be for Stripe."""
MARGIN = timedelta(minutes=10)
TOO_OLD = "too old"
UNKNOWN = "outcome unknown"
DELETED_AT_ONCE = 1_000


class ClaimedReport(NamedTuple):
    """A report whose attempt has begun."""

    id: UUID
    event_name: str
    identifier: str
    customer_id: str
    value: int
    timestamp: datetime
    attempts: int
    """The number of attempts, including this one."""
    uncertain_since: datetime
    began_at: datetime
    until: datetime


async def send_due(database: Database, stripe: Stripe) -> int:
    """Attempt each due report once. Returns the number of attempts."""
    attempts = 0
    while True:
        async with database.transaction() as session:
            claimed = await claim_reports(session, now())
        results = await asyncio.gather(*(_send(database, stripe, report) for report in claimed), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result  # the report is attempted again after the time of an attempt
        attempts += len(claimed)
        if len(claimed) < BATCH:
            return attempts


async def _send(database: Database, stripe: Stripe, report: ClaimedReport) -> None:
    answer = await send_event(
        stripe,
        event_name=report.event_name,
        identifier=report.identifier,
        customer_id=report.customer_id,
        value=report.value,
        timestamp=report.timestamp,
    )
    async with database.transaction() as session:
        await end_attempt(session, report, answer, now())
    if answer.outcome is Outcome.ACCEPTED:
        metrics.METER_REPORTS.labels("sent").inc()
    elif answer.outcome is Outcome.REFUSED:
        _log_failure(report.id, answer.error or "")
    else:
        log.warning("report not sent to Stripe", report_id=str(report.id), error=answer.error, attempt=report.attempts)


async def claim_reports(session: AsyncSession, moment: datetime) -> Sequence[ClaimedReport]:
    """Begin an attempt of reports that are due, after giving up those that must not be sent any more."""
    report = MeterReportRecord
    due = report.sent_at.is_(None), report.due_at <= moment
    await _give_up(session, TOO_OLD, *due, report.timestamp < moment - ACCEPTED_DAYS + MARGIN)
    await _give_up(session, UNKNOWN, *due, report.uncertain_since < moment - PROTECTED)
    chosen = await session.scalars(
        sa.select(report.id).where(*due).order_by(report.due_at).limit(BATCH).with_for_update(skip_locked=True)
    )
    until = moment + ATTEMPT
    rows = await session.execute(
        sa.update(report)
        .where(report.id.in_(chosen.all()))
        .values(
            due_at=until,
            attempts=report.attempts + 1,
            # A process that ends during the attempt leaves this.
            uncertain_since=sa.func.coalesce(report.uncertain_since, sa.literal(moment, report.due_at.type)),
        )
        .returning(*(getattr(report, name) for name in ClaimedReport._fields[:8]))
        .execution_options(synchronize_session=False)
    )
    return [ClaimedReport(**row, began_at=moment, until=until) for row in rows.mappings()]


async def _give_up(session: AsyncSession, error: str, *conditions: sa.ColumnElement[bool]) -> None:
    ids = await session.scalars(
        sa.update(MeterReportRecord)
        .where(*conditions)
        .values(due_at=None, error=error)
        .returning(MeterReportRecord.id)
        .execution_options(synchronize_session=False)
    )
    for report_id in ids:
        _log_failure(report_id, error)


def _log_failure(report_id: UUID, error: str) -> None:
    metrics.METER_REPORTS.labels("failed").inc()
    log.error("report to Stripe has failed", report_id=str(report_id), error=error)


async def end_attempt(session: AsyncSession, report: ClaimedReport, answer: Answer, moment: datetime) -> None:
    """Record the result of an attempt, unless another process has begun one meanwhile."""
    values: dict[str, Any] = {"error": answer.error, "due_at": None}
    if answer.outcome is Outcome.ACCEPTED:
        values["sent_at"] = moment
    elif answer.outcome is not Outcome.REFUSED:
        values["due_at"] = moment + backoff_after(report.attempts)
    if answer.outcome in (Outcome.NOT_PROCESSED, Outcome.REFUSED) and report.uncertain_since == report.began_at:
        values["uncertain_since"] = None
    await session.execute(
        sa.update(MeterReportRecord)
        .where(MeterReportRecord.id == report.id, MeterReportRecord.due_at == report.until)
        .values(values)
        .execution_options(synchronize_session=False)
    )


def backoff_after(attempts: int) -> timedelta:
    """The pause after this number of failed attempts: 30 seconds, then twice as long each time, up to an hour."""
    return min(FIRST_BACKOFF * int(2 ** min(attempts - 1, MAX_EXPONENT)), MAX_BACKOFF)


async def delete_old_reports(session: AsyncSession, moment: datetime) -> bool:
    """Delete sent reports that nothing reads any more. Returns whether there may be more of them."""
    report = MeterReportRecord
    old = sa.select(report.id).where(report.created_at < moment - KEPT, report.sent_at.is_not(None))
    ids = (await session.scalars(old.limit(DELETED_AT_ONCE))).all()
    await session.execute(sa.delete(report).where(report.id.in_(ids)).execution_options(synchronize_session=False))
    return len(ids) == DELETED_AT_ONCE
