from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.ids import read_id
from bloxserver.models.enums import Tier
from bloxserver.models.tables import DeletedUserRecord, UserRecord
from bloxserver.plans import Plan, get_plan


async def read_user_by_clerk_id(session: AsyncSession, clerk_id: str) -> UserRecord | None:
    return await session.scalar(sa.select(UserRecord).where(UserRecord.clerk_id == clerk_id))


async def is_deleted(session: AsyncSession, identity: str) -> bool:
    """Whether a user with this identity (`clerk_id`) was deleted."""
    found = sa.select(DeletedUserRecord.identity).where(DeletedUserRecord.identity == identity)
    return await session.scalar(found) is not None


async def read_plan(session: AsyncSession, user_id: UUID) -> Plan:
    """The limits of a user; those of the free tier if there is no such user."""
    user = (
        await session.execute(sa.select(UserRecord.tier, UserRecord.limits).where(UserRecord.id == user_id))
    ).first()
    return get_plan(Tier.FREE) if user is None else get_plan(user.tier or Tier.FREE, user.limits)


async def read_users(session: AsyncSession) -> list[UserRecord]:
    """All users of the installation who were not deleted, the oldest first."""
    kept = sa.select(UserRecord).where(UserRecord.deleted_at.is_(None))
    return list(await session.scalars(kept.order_by(UserRecord.created_at, UserRecord.id)))


async def find_users(session: AsyncSession, reference: str) -> list[UserRecord]:
    """The users whom an operator means: by id, by the identity of the sign-in (`clerk_id`), or by email.

    Users who were deleted are not found.
    An email is what the provider sent, so it must not hide the user with this id or identity.
    """
    kept = sa.select(UserRecord).where(UserRecord.deleted_at.is_(None)).order_by(UserRecord.id)
    if (user_id := read_id(reference)) is not None:
        return list(await session.scalars(kept.where(UserRecord.id == user_id)))
    for column in (UserRecord.clerk_id, UserRecord.email):
        if found := list(await session.scalars(kept.where(column == reference))):
            return found
    return []
