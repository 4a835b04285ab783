"""Takes from dead workers what they were at, so that living ones go on with it."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.loops import PollLoop
from bloxserver.engine.queue.claims import release_claims
from bloxserver.engine.queue.heartbeat import Heartbeat
from bloxserver.models.database import Database
from bloxserver.models.postgres import APPLICATION_NAME, IDLE_SECONDS
from bloxserver.models.tables import ExecutionRecord, WorkerRecord
from bloxserver.models.transient_errors import is_connection_error, reason_of
from bloxserver.models.types import database_now
from bloxserver.observability import metrics
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

STALE_AFTER = timedelta(seconds=IDLE_SECONDS)
DELETE_AFTER_TIMEOUTS = 100
"""Times `HEARTBEAT_TIMEOUT_SECONDS`, after which a dead worker is not even remembered."""


class Recovery:
    """Runs on every worker; it is the same whichever of them sees it first."""

    def __init__(self, settings: Settings, database: Database, heartbeat: Heartbeat) -> None:
        self._interval_seconds = settings.heartbeat_interval_seconds
        self._loop = PollLoop(self._poll, failure="recovery of executions failed", retry_seconds=self._interval_seconds)
        self._silence = timedelta(seconds=settings.heartbeat_timeout_seconds)
        self._database = database
        self._heartbeat = heartbeat

    async def run(self) -> None:
        """Recover executions until cancelled."""
        await self._loop.run()

    async def _poll(self) -> float:
        await self.recover()
        return self._interval_seconds

    async def recover(self) -> int:
        """Release what dead workers were at; returns how many executions that were."""
        try:
            await self._terminate_stale_sessions()
        except Exception as error:
            # The database user may lack the privilege; executions are recovered without it.
            if not is_connection_error(error):
                log.warning("stale database sessions not terminated", reason=reason_of(error))
        if not self._heartbeat.can_declare_dead:
            return 0
        async with self._database.transaction() as session:
            released = await reclaim_expired(session, self._silence)
            await delete_expired_workers(session, DELETE_AFTER_TIMEOUTS * self._silence)
        metrics.EXECUTIONS_RECOVERED.inc(released)
        if released:
            log.warning("took over from dead workers", executions=released)
        return released

    async def _terminate_stale_sessions(self) -> None:
        """Before anything is released: they may hold the locks of it, and that under which all workers claim."""
        if self._database.engine.dialect.name != "postgresql":
            return
        async with self._database.transaction() as session:
            ended = await terminate_stale_sessions(session, STALE_AFTER)
        if ended:
            log.warning("ended sessions of processes that are gone", sessions=ended)


async def reclaim_expired(session: AsyncSession, silence: timedelta) -> int:
    """Take from workers that have been silent for so long, by the database's clock, what they were at; how many."""
    alive = sa.select(WorkerRecord.worker_id).where(WorkerRecord.last_heartbeat_at >= await _before(session, silence))
    dead = sa.or_(ExecutionRecord.worker_id.is_(None), ExecutionRecord.worker_id.not_in(alive))
    return await release_claims(session, dead, crash_count=ExecutionRecord.crash_count + 1)


async def reclaim_all(session: AsyncSession) -> int:
    """Take all that is taken: for a database that belongs to one process, which has just begun."""
    return await release_claims(session, sa.true(), crash_count=ExecutionRecord.crash_count + 1)


async def delete_expired_workers(session: AsyncSession, silence: timedelta) -> None:
    """Remove workers that have been silent for so long."""
    await session.execute(
        sa.delete(WorkerRecord).where(WorkerRecord.last_heartbeat_at < await _before(session, silence))
    )


async def _before(session: AsyncSession, span: timedelta) -> datetime:
    return (await session.execute(sa.select(database_now()))).scalar_one() - span


# A process that is frozen, or cut off, between two messages of one statement is `active` to the server, whose own time
# limits pass it over: it waits for the client, and neither a statement nor an idle transaction.
_STALE = sa.text("""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = :application
AND xact_start IS NOT NULL AND wait_event = 'ClientRead' AND pid <> pg_backend_pid()
AND state_change < clock_timestamp() - CAST(:silence AS interval)
""").bindparams(sa.bindparam("silence", type_=sa.Interval()))


async def terminate_stale_sessions(session: AsyncSession, silence: timedelta) -> int:
    """End sessions of ours that have kept a transaction, with its locks, waiting for so long; returns how many.

    On PostgreSQL. None of our transactions waits for anything but the database.
    """
    ended: int = (await session.execute(_STALE, {"application": APPLICATION_NAME, "silence": silence})).scalar_one()
    return ended
