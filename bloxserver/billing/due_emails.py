"""Emails that a time causes: the end of a trial, and the end of the grace period after a failed payment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import Email, EmailKind
from bloxserver.clock import iso_utc
from bloxserver.models.enums import Tier, TierSource
from bloxserver.models.tables import UserRecord

BEFORE_TRIAL_END = timedelta(days=3)
BEFORE_GRACE_END = timedelta(days=2)


async def find_due_emails(session: AsyncSession, moment: datetime) -> list[tuple[UUID, Email]]:
    """The emails that are due at this time, with their users; also those that were written before."""
    user = UserRecord
    # A cancelled trial is not charged, and its user knows when it ends.
    trials = user.stripe_status == "trialing", user.cancel_at.is_(None)
    ending = await _find(session, moment, BEFORE_TRIAL_END, user.trial_ends_at, *trials)
    failed = await _find(session, moment, BEFORE_GRACE_END, user.grace_ends_at, user.stripe_status == "past_due")
    return [
        *(_email(EmailKind.TRIAL_ENDING, "trial_ends_at", row) for row in ending),
        *(_email(EmailKind.PAYMENT_FAILED_WARNING, "grace_ends_at", row) for row in failed),
    ]


async def _find(
    session: AsyncSession,
    moment: datetime,
    notice: timedelta,
    end: sa.SQLColumnExpression[datetime | None],
    *conditions: sa.ColumnElement[bool],
) -> Sequence[sa.Row[Any]]:
    """The users for whom a time is less than `notice` away."""
    user = UserRecord
    plan = sa.case((user.tier_source == TierSource.STRIPE, sa.type_coerce(user.tier, sa.String)), else_=Tier.PRO.value)
    wanted = sa.select(user.id, user.stripe_subscription_id, plan, end).where(
        user.deleted_at.is_(None), end > moment, end <= moment + notice, *conditions
    )
    return (await session.execute(wanted)).all()


def _email(kind: EmailKind, end_name: str, row: sa.Row[Any]) -> tuple[UUID, Email]:
    user_id, subscription_id, plan, end = tuple(row)
    text = iso_utc(end)
    return user_id, Email(kind, f"{kind}:{subscription_id}:{text}", {"plan": plan, end_name: text})
