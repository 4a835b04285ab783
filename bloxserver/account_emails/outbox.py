"""The outbox of emails to users: rows of the transaction that causes them, each of which is sent at most once.

A worker claims a row, and commits that it begins an attempt before it talks to the mail server. If it ends in between,
the row is claimed again. If it ends after that, the mail server may have accepted the email, so it is not sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import Email
from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.tables import AccountEmailRecord, UserRecord
from bloxserver.models.upsert import insert_into
from bloxserver.observability import metrics

log = structlog.stdlib.get_logger("bloxserver.account_emails")

BATCH = 5
"""Emails that a process sends concurrently."""
CLAIM = timedelta(minutes=5)
"""Longer than any attempt takes. A claim without an attempt by then is void."""
EXPIRY = timedelta(days=3)
"""How long an email is attempted. It is stale afterwards."""
FIRST_BACKOFF = timedelta(minutes=2)
MAX_BACKOFF = timedelta(hours=2)
MAX_EXPONENT = 10
KEPT = timedelta(days=400)
"""How long rows are kept. Their keys prevent a second email for the same cause."""
CHUNK = 500
"""Rows of one statement."""
DELETED_AT_ONCE = 1_000
UNKNOWN = "outcome unknown"
EXPIRED = "expired"

_UNSYNCHRONIZED = {"synchronize_session": False}


class Outcome(StrEnum):
    """The result of an attempt, or of the email without one."""

    SENT = "sent"
    RETRIED = "retried"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """The mail server may have accepted it."""
    EXPIRED = "expired"


class ClaimedEmail(NamedTuple):
    """An email that one process is about to send."""

    id: UUID
    user_id: UUID
    kind: str
    event_key: str
    data: dict[str, Any]
    attempts: int
    """The number of claims, including this one."""
    created_at: datetime
    until: datetime


async def enqueue(session: AsyncSession, wanted: Sequence[tuple[UUID, Email]]) -> None:
    """Write the emails of these users, unless they have one with the same key."""
    record, moment = AccountEmailRecord, now()
    for start in range(0, len(wanted), CHUNK):
        rows = [
            {
                "id": new_id(),
                "user_id": user_id,
                "kind": email.kind.value,
                "event_key": email.key,
                "data": dict(email.data),
                "due_at": moment,
                "created_at": moment,
            }
            for user_id, email in wanted[start : start + CHUNK]
        ]
        inserted = insert_into(session, record).values(rows)
        await session.execute(inserted.on_conflict_do_nothing(index_elements=[record.user_id, record.event_key]))


async def without_written(session: AsyncSession, wanted: Sequence[tuple[UUID, Email]]) -> list[tuple[UUID, Email]]:
    """The emails that are not in the outbox."""
    record, left = AccountEmailRecord, []
    for start in range(0, len(wanted), CHUNK):
        chunk = wanted[start : start + CHUNK]
        keys = sa.select(record.user_id, record.event_key).where(
            record.user_id.in_({user_id for user_id, _ in chunk}),
            record.event_key.in_({email.key for _, email in chunk}),
        )
        written = {tuple(row) for row in await session.execute(keys)}
        left += [(user_id, email) for user_id, email in chunk if (user_id, email.key) not in written]
    return left


async def claim_emails(session: AsyncSession, moment: datetime) -> list[ClaimedEmail]:
    """Claim emails that are due, after giving up those that must not be sent any more."""
    record = AccountEmailRecord
    due = record.due_at <= moment
    await _give_up(session, Outcome.UNKNOWN, UNKNOWN, due, record.attempted_at.is_not(None))
    await _give_up(session, Outcome.EXPIRED, EXPIRED, due, record.created_at < moment - EXPIRY)
    chosen = await session.scalars(
        sa.select(record.id)
        .where(due, record.attempted_at.is_(None), record.created_at >= moment - EXPIRY)
        .order_by(record.due_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    until = moment + CLAIM
    rows = await session.execute(
        sa.update(record)
        .where(record.id.in_(chosen.all()))
        .values(due_at=until, attempts=record.attempts + 1)
        .returning(*(getattr(record, name) for name in ClaimedEmail._fields[:-1]))
        .execution_options(**_UNSYNCHRONIZED)
    )
    return [ClaimedEmail(**row, until=until) for row in rows.mappings()]


async def _give_up(session: AsyncSession, outcome: Outcome, error: str, *conditions: sa.ColumnElement[bool]) -> None:
    record = AccountEmailRecord
    chosen = await session.scalars(
        sa.select(record.id).where(*conditions).limit(CHUNK).with_for_update(skip_locked=True)
    )
    rows = await session.execute(
        sa.update(record)
        .where(record.id.in_(chosen.all()))
        .values(due_at=None, error=error)
        .returning(record.id, record.kind)
        .execution_options(**_UNSYNCHRONIZED)
    )
    for email_id, kind in rows:
        metrics.ACCOUNT_EMAILS.labels(outcome.value).inc()
        log.warning("email to a user not sent", email_id=str(email_id), kind=kind, error=error)


class Recipient(NamedTuple):
    address: str
    name: str | None


async def read_recipient(session: AsyncSession, user_id: UUID) -> Recipient | None:
    """The user as they are now; None if they were deleted."""
    user = UserRecord
    wanted = sa.select(user.email, user.name).where(user.id == user_id, user.deleted_at.is_(None))
    row = (await session.execute(wanted)).first()
    return None if row is None else Recipient(*row)


async def begin_attempt(session: AsyncSession, email: ClaimedEmail, moment: datetime) -> bool:
    """Record that the email is sent from now on. Returns False if the claim is void, or the email was deleted."""
    return await _update(session, email, attempted_at=moment)


async def end_attempt(session: AsyncSession, email: ClaimedEmail, moment: datetime, error: str | None = None) -> None:
    """Record that the mail server has accepted the email, or that it is not sent because of the error."""
    ended = {"sent_at": moment} if error is None else {}
    await _update(session, email, due_at=None, error=error, **ended)


async def postpone(session: AsyncSession, email: ClaimedEmail, moment: datetime, error: str) -> None:
    """Record that the mail server has not accepted the email, and that it is sent later."""
    await _update(session, email, due_at=moment + backoff_after(email.attempts), attempted_at=None, error=error)


async def _update(session: AsyncSession, email: ClaimedEmail, **values: Any) -> bool:
    record = AccountEmailRecord
    updated = await session.execute(
        sa.update(record)
        .where(record.id == email.id, record.due_at == email.until)
        .values(values)
        .returning(record.id)
        .execution_options(**_UNSYNCHRONIZED)
    )
    return updated.first() is not None


def backoff_after(attempts: int) -> timedelta:
    """The pause after this number of failed attempts: 2 minutes, then twice as long each time, up to 2 hours."""
    return min(FIRST_BACKOFF * int(2 ** min(attempts - 1, MAX_EXPONENT)), MAX_BACKOFF)


async def delete_old_emails(session: AsyncSession, moment: datetime) -> bool:
    """Delete rows that are not kept any longer. Returns whether there may be more of them."""
    record = AccountEmailRecord
    old = sa.select(record.id).where(record.created_at < moment - KEPT).limit(DELETED_AT_ONCE)
    ids = (await session.scalars(old)).all()
    await session.execute(sa.delete(record).where(record.id.in_(ids)).execution_options(**_UNSYNCHRONIZED))
    return len(ids) == DELETED_AT_ONCE
