"""Completes the deletion of users, whose flows the deletions of flows delete before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.metering import cut_period, read_periods_of
from bloxserver.engine.background.retention_batches import MAX_ROWS, delete_some_calls
from bloxserver.models.database import Database
from bloxserver.models.tables import (
    ANONYMOUS,
    DELETING,
    AccountEmailRecord,
    FlowRecord,
    LlmCallRecord,
    StoredBytesRecord,
    UserRecord,
)
from bloxserver.settings import Settings, get_settings

MAX_PENDING = 1_000
"""Users that one run reads."""

_has_flows = sa.select(FlowRecord.id).where(FlowRecord.user_id == UserRecord.id).exists()


class PendingUsers(NamedTuple):
    """Users whose deletion is pending."""

    ready: Sequence[UUID]
    """Those whose flows are deleted."""
    others: int


async def read_pending_users(session: AsyncSession) -> PendingUsers:
    """The users whose deletion is pending, without those who wait for the end of their subscription."""
    pending = sa.select(UserRecord.id, _has_flows.label("has_flows")).where(*_pending(get_settings()))
    rows = (await session.execute(pending.order_by(UserRecord.deleted_at).limit(MAX_PENDING))).all()
    ready = [row.id for row in rows if not row.has_flows]
    return PendingUsers(ready, len(rows) - len(ready))


async def finish_user(database: Database, user_id: UUID) -> bool:
    """Delete or anonymise a user without flows. Returns False if another process did, or if they have flows."""
    settings = get_settings()
    wanted = (UserRecord.id == user_id, *_pending(settings), ~_has_flows)
    await _delete_calls(database, user_id)
    async with database.transaction() as session:
        # The counters are deleted with the user. Their last runs are reported nevertheless.
        for key in await read_periods_of(session, user_id):
            await cut_period(session, key, skip_locked=False)
        if settings.user_deletion == "purge":
            finished = await session.execute(
                sa.delete(UserRecord).where(*wanted).returning(UserRecord.id).execution_options(**_UNSYNCHRONIZED)
            )
            return finished.first() is not None
        anonymised = await session.execute(
            sa.update(UserRecord)
            .where(*wanted)
            .values(clerk_id=f"{ANONYMOUS}{uuid4()}", limits=None, clerk_updated_at=None)
            .returning(UserRecord.id)
            .execution_options(**_UNSYNCHRONIZED)
        )
        if anonymised.first() is None:
            return False
        for table in (StoredBytesRecord, AccountEmailRecord):
            await session.execute(sa.delete(table).where(table.user_id == user_id))
        return True


async def _delete_calls(database: Database, user_id: UUID) -> None:
    """Delete the calls of language models, in several transactions: there may be millions."""
    number = MAX_ROWS
    while number == MAX_ROWS:
        async with database.transaction() as session:
            number = await delete_some_calls(session, LlmCallRecord.user_id == user_id)


def _pending(settings: Settings) -> list[Any]:
    """Which users are completed. Their subscription must be cancelled before, and needs its id in their row.

    Billing sets `stripe_subscription_id` of a deleted user to null when Stripe has cancelled it.
    """
    conditions: list[Any] = [sa.text(DELETING)]
    if settings.stripe_secret_key is not None:
        conditions.append(UserRecord.stripe_subscription_id.is_(None))
    return conditions


_UNSYNCHRONIZED = {"synchronize_session": False}
