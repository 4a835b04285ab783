"""Takes executions from the queue by hand, as a worker does."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.queue.claims import ClaimedExecution, claim_executions
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus

PLENTY = {"free": 1000, "pro": 1000, "enterprise": 1000, "high_frequency": 1000}


async def claim(session: AsyncSession, worker_id: str = "w-test") -> list[ClaimedExecution]:
    """All that is due, of whoever."""
    return await claim_executions(session, worker_id, uuid4(), PLENTY, PLENTY)


async def take(database: Database, execution: ExecutionRecord, worker_id: str = "w-test") -> ClaimedExecution:
    """The execution, which is the only one that is due."""
    async with database.transaction() as session:
        (taken,) = await claim(session, worker_id)
    assert taken.id == execution.id
    return taken


async def ended(database: Database, execution: ExecutionRecord) -> None:
    """Wait for the end of it."""
    async with asyncio.timeout(20):
        while True:
            async with database.sessions() as session:
                if (await session.get_one(ExecutionRecord, execution.id)).status is not ExecutionStatus.RUNNING:
                    return
            await asyncio.sleep(0.02)
