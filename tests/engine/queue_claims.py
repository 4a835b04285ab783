"""Claims executions from the queue in a test, as a worker does."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.queue.claims import ClaimedExecution, claim_executions
from bloxserver.engine.run.claimer import Claimer
from bloxserver.engine.run.worker import Worker
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, WorkerRecord
from bloxserver.settings import Settings

PLENTY = {"free": 1000, "pro": 1000, "enterprise": 1000, "high_frequency": 1000}


async def claim(session: AsyncSession, worker_id: str = "w-test") -> list[ClaimedExecution]:
    """All executions that are due, of all users."""
    return await claim_executions(session, worker_id, uuid4(), PLENTY, PLENTY)


async def take(database: Database, execution: ExecutionRecord, worker_id: str = "w-test") -> ClaimedExecution:
    """Claim the execution, which is the only one that is due."""
    async with database.transaction() as session:
        (claimed,) = await claim(session, worker_id)
    assert claimed.id == execution.id
    return claimed


async def claimer_of(settings: Settings, database: Database, worker: Worker, worker_id: str) -> Claimer:
    """A claimer of a worker whose heartbeat does not expire."""
    async with database.transaction() as session:
        session.add(WorkerRecord(worker_id=worker_id, last_heartbeat_at=now() + timedelta(hours=1)))
    return Claimer(settings, database, worker, worker_id, is_alive=lambda: True)


async def ended(database: Database, execution: ExecutionRecord) -> None:
    """Wait until the execution has ended."""
    async with asyncio.timeout(20):
        while True:
            async with database.sessions() as session:
                if (await session.get_one(ExecutionRecord, execution.id)).status is not ExecutionStatus.RUNNING:
                    return
            await asyncio.sleep(0.02)
