from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import Tier
from bloxserver.models.tables import UserRecord
from bloxserver.plans import FREE, Plan, get_plan


async def read_user_by_clerk_id(session: AsyncSession, clerk_id: str) -> UserRecord | None:
    return await session.scalar(sa.select(UserRecord).where(UserRecord.clerk_id == clerk_id))


async def read_plan(session: AsyncSession, user_id: UUID) -> Plan:
    """The limits of a user; those of the free tier if there is no such user."""
    user = (
        await session.execute(sa.select(UserRecord.tier, UserRecord.limits).where(UserRecord.id == user_id))
    ).first()
    return FREE if user is None else get_plan(user.tier or Tier.FREE, user.limits)
