"""Deletes users. A deletion is effective at once; their rows are deleted in the background.

`bloxserver.engine.background.account_deletions` completes it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import AuditAction
from bloxserver.models.tables import (
    AccountEmailRecord,
    ApiKeyRecord,
    DeletedUserRecord,
    EmailCountRecord,
    IdempotencyKeyRecord,
    LlmReservationRecord,
    LlmWindowRecord,
    SecretRecord,
    UserApiKeyRecord,
    UserRecord,
)
from bloxserver.models.upsert import insert_into
from bloxserver.queries.users import is_deleted
from bloxserver.services import audit
from bloxserver.services.deletions import mark_flows_of

ERASED: dict[str, Any] = {"email": "", "name": None, "avatar_url": None, "issuer": None, "subject": None}
"""The personal data in the row of a user. The identity remains until the other rows are deleted."""


async def delete_account(session: AsyncSession, user_id: UUID) -> bool:
    """Delete a user. Returns False if there is none, or if they were deleted before.

    From the commit on, requests of the user are refused, their flows are stopped, and their keys, secrets and tokens
    are gone. The identity cannot sign in again.
    """
    deleted = await session.execute(
        sa.update(UserRecord)
        .where(UserRecord.id == user_id, UserRecord.deleted_at.is_(None))
        .values(deleted_at=now(), **ERASED)
        .returning(UserRecord.clerk_id, UserRecord.tier)
        .execution_options(synchronize_session=False)
    )
    user = deleted.one_or_none()
    if user is None:
        return False
    await _bury(session, user.clerk_id)
    await mark_flows_of(session, user_id)
    for table in (
        ApiKeyRecord,
        SecretRecord,
        UserApiKeyRecord,
        EmailCountRecord,
        AccountEmailRecord,
        LlmWindowRecord,
        LlmReservationRecord,
    ):
        await session.execute(sa.delete(table).where(table.user_id == user_id))
    await session.execute(sa.delete(IdempotencyKeyRecord).where(IdempotencyKeyRecord.owner_id == user_id))
    await audit.record(session, AuditAction.USER_DELETED, user_id, user_id, before={"tier": user.tier})
    wake_engine_after_commit(session, WakeReason.DELETION)
    return True


async def delete_identity(session: AsyncSession, identity: str) -> None:
    """Delete the user with this identity (`clerk_id`). If there is none, the identity cannot sign in from now on."""
    if await is_deleted(session, identity):
        return
    # The unique identity makes this and a concurrent first sign-in wait for each other: see `users.insert_user`.
    inserted = await session.scalar(
        insert_into(session, UserRecord)
        .values(clerk_id=identity)
        .on_conflict_do_nothing(index_elements=[UserRecord.clerk_id])
        .returning(UserRecord.id)
    )
    if inserted is not None:
        await session.execute(sa.delete(UserRecord).where(UserRecord.id == inserted))
        await _bury(session, identity)
        return
    user_id = await session.scalar(sa.select(UserRecord.id).where(UserRecord.clerk_id == identity))
    if user_id is not None:
        await delete_account(session, user_id)


async def _bury(session: AsyncSession, identity: str) -> None:
    """Store the tombstone of an identity."""
    tombstone = insert_into(session, DeletedUserRecord).values(identity=identity)
    await session.execute(tombstone.on_conflict_do_nothing(index_elements=[DeletedUserRecord.identity]))
