from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import UserRecord


async def read_user_by_clerk_id(session: AsyncSession, clerk_id: str) -> UserRecord | None:
    return await session.scalar(sa.select(UserRecord).where(UserRecord.clerk_id == clerk_id))
