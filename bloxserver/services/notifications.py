"""Failure notifications: rows that are written in the transaction that ends an execution, and sent from there."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import NotificationChannel
from bloxserver.models.tables import FailureNotificationRecord
from bloxserver.models.upsert import insert_into
from bloxserver.organism.model import FailureNotification


async def enqueue_failure_notification(session: AsyncSession, execution_id: UUID, notice: FailureNotification) -> None:
    """Have people told of an execution that this transaction ends as failed, or as out of time; once each."""
    addresses = {NotificationChannel.URL: notice.url, NotificationChannel.EMAIL: notice.email}
    moment = now()
    rows = [
        {"id": new_id(), "execution_id": execution_id, "channel": channel, "due_at": moment}
        for channel, address in addresses.items()
        if address is not None
    ]
    if rows:
        await session.execute(insert_into(session, FailureNotificationRecord).values(rows).on_conflict_do_nothing())
        wake_engine_after_commit(session, WakeReason.NOTIFICATION)
