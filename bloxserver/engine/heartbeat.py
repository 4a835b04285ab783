"""Says that this worker lives, and takes over the work of those that no longer say so."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.database import Database
from bloxserver.api.models.statements import insert_into
from bloxserver.api.models.tables import WorkerRecord
from bloxserver.api.models.types import database_now
from bloxserver.engine.jobs import JobQueue
from bloxserver.engine.patience import in_transaction
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")


class Heartbeat:
    """Beats by the database's clock, so that the clocks of machines need not agree."""

    def __init__(self, settings: Settings, database: Database, jobs: JobQueue, executor_id: str) -> None:
        self._pause = settings.heartbeat_seconds
        self._dead_after = timedelta(seconds=settings.dead_after_seconds)
        self._database = database
        self._jobs = jobs
        self._executor_id = executor_id

    async def beat(self) -> None:
        """Must have happened before the first job: a worker without a beat counts as dead."""
        await in_transaction(self._database, self._beat)

    async def run(self) -> None:
        """Until cancelled. A failure is logged and tried again with the next beat."""
        while True:
            try:
                await self.beat()
                await self._take_over()
            except Exception as error:
                log.warning("heartbeat failed", error=type(error).__name__, exc_info=error)
            await asyncio.sleep(self._pause)

    async def end(self) -> None:
        """Let others take over at once."""
        async with self._database.transaction() as session:
            await session.execute(sa.delete(WorkerRecord).where(WorkerRecord.executor_id == self._executor_id))

    async def _beat(self, session: AsyncSession) -> None:
        await session.execute(
            insert_into(session, WorkerRecord)
            .values(executor_id=self._executor_id, beat_at=database_now())
            .on_conflict_do_update(index_elements=[WorkerRecord.executor_id], set_={"beat_at": database_now()})
        )

    async def _take_over(self) -> None:
        pending = await self._jobs.executors_with_pending_jobs()
        async with self._database.transaction() as session:
            moment = await session.scalar(sa.select(database_now()))
            if moment is None:
                return
            alive = WorkerRecord.beat_at >= moment - self._dead_after
            living = set(await session.scalars(sa.select(WorkerRecord.executor_id).where(alive)))
            await session.execute(sa.delete(WorkerRecord).where(WorkerRecord.beat_at < moment - 100 * self._dead_after))
        dead = [executor for executor in pending if executor not in living]
        if dead:
            log.warning("taking over from dead workers", workers=dead)
            await self._jobs.take_over(dead)
