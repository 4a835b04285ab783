"""Failure notifications: rows written in the transaction that ends an execution. A background task sends them."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import NotificationChannel
from bloxserver.models.tables import FailureNotificationRecord
from bloxserver.models.upsert import insert_into
from bloxserver.organism.model import FailureNotification

KEPT = timedelta(days=2)
"""How long notifications about budgets are kept at least, so that one of a day is not repeated."""


async def enqueue_failure_notification(
    session: AsyncSession, execution_id: UUID, recipients: FailureNotification
) -> None:
    """Enqueue one notification per recipient for an execution that this transaction ends as failed or timed out."""
    await _enqueue(session, recipients, execution_id=execution_id)


async def enqueue_disabled_notification(
    session: AsyncSession, trigger_id: UUID, reason: str, recipients: FailureNotification
) -> None:
    """Enqueue one notification per recipient for a schedule that this transaction disables."""
    await _enqueue(session, recipients, trigger_id=trigger_id, reason=reason)


async def enqueue_budget_notification(
    session: AsyncSession, flow_id: UUID, subject: str, reason: str, recipients: FailureNotification
) -> None:
    """Enqueue one notification per recipient about a budget of a flow, unless there is one with this subject."""
    notice = FailureNotificationRecord
    ended = notice.flow_id == flow_id, notice.due_at.is_(None), notice.created_at < now() - KEPT
    await session.execute(sa.delete(notice).where(*ended).execution_options(synchronize_session=False))
    await _enqueue(session, recipients, flow_id=flow_id, subject=subject, reason=reason)


async def _enqueue(session: AsyncSession, recipients: FailureNotification, **values: object) -> None:
    addresses = {NotificationChannel.URL: recipients.url, NotificationChannel.EMAIL: recipients.email}
    moment = now()
    rows = [
        {"id": new_id(), "channel": channel, "due_at": moment, "created_at": moment, **values}
        for channel, address in addresses.items()
        if address is not None
    ]
    if rows:
        await session.execute(insert_into(session, FailureNotificationRecord).values(rows).on_conflict_do_nothing())
        wake_engine_after_commit(session, WakeReason.NOTIFICATION)
