"""Tables of metered usage. Without foreign keys, because they outlive a deleted user, whose usage is still billed."""

from __future__ import annotations

import uuid
from datetime import date, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from bloxserver.models.base import Base, Counter, CreatedAt, Id, partial_index

UNSENT = "sent_at IS NULL"


class BillingPeriodRecord(Base):
    """A period in which the subscription of a user was active. Usage of other periods is never reported to Stripe."""

    __tablename__ = "billing_periods"
    __table_args__ = (sa.Index(None, "period_end"),)

    user_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    period_start: Mapped[datetime] = mapped_column(primary_key=True)
    period_end: Mapped[datetime]
    """By Stripe. That of `usage_records` may be an assumption."""
    customer_id: Mapped[str] = mapped_column(sa.String(255))
    is_billed: Mapped[bool] = mapped_column(default=True, server_default=sa.true())
    """False while the subscription is not paid."""
    reconciled_at: Mapped[datetime | None]
    """When the last comparison with Stripe in the background began."""
    created_at: Mapped[CreatedAt]


class MeterReportRecord(Base):
    """Usage that is sent to a meter of Stripe, or was sent.

    A report without `sent_at` and `due_at` has failed: `bloxserver billing reconcile` decides about it.
    """

    __tablename__ = "meter_reports"
    __table_args__ = (
        sa.UniqueConstraint("identifier"),
        sa.Index(None, "user_id", "period_start"),
        sa.Index(None, "created_at"),
        partial_index("ix_meter_reports_unsent", "due_at", where=UNSENT),
    )

    id: Mapped[Id]
    user_id: Mapped[uuid.UUID]
    period_start: Mapped[datetime]
    customer_id: Mapped[str] = mapped_column(sa.String(255))
    event_name: Mapped[str] = mapped_column(sa.String(100))
    identifier: Mapped[str] = mapped_column(sa.String(255))
    """The same for the same usage. Stripe refuses a second event with it."""
    value: Mapped[int] = mapped_column(sa.BigInteger)
    timestamp: Mapped[datetime]
    """The time of the usage at Stripe, within the period."""
    due_at: Mapped[datetime | None]
    """When it is sent next; during an attempt, when another process repeats the attempt."""
    attempts: Mapped[Counter]
    uncertain_since: Mapped[datetime | None]
    """The first attempt of which it is unknown whether Stripe has accepted the report."""
    sent_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(sa.String(255))
    created_at: Mapped[CreatedAt]


class StorageSampleRecord(Base):
    """What a user with a billed period stored on a day, in UTC. It is written with its report."""

    __tablename__ = "storage_samples"
    __table_args__ = (sa.Index(None, "day"),)

    user_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    period_start: Mapped[datetime]
    """The period that contains the beginning of the day."""
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    billed_megabytes: Mapped[int] = mapped_column(sa.BigInteger)
    """Whole megabytes (10^6 bytes) beyond those that the plan included."""
    created_at: Mapped[CreatedAt]
