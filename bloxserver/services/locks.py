"""Locks on executions.

Whoever locks several takes them in the order of their ids, and what he locks of flows before them: so nobody waits for
somebody who waits for him.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import ExecutionRecord


async def lock_executions(session: AsyncSession, *wanted: sa.ColumnElement[bool]) -> None:
    """Lock these executions until the transaction ends."""
    locked = sa.select(ExecutionRecord.id).where(*wanted).order_by(ExecutionRecord.id).with_for_update().subquery()
    # Counted, so that the ids of a long backlog stay where they are.
    await session.execute(sa.select(sa.func.count()).select_from(locked))
