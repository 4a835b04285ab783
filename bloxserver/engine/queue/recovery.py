"""Recovery: executions of workers whose heartbeat expired are released, so that other workers continue them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.loops import PollLoop
from bloxserver.engine.queue.claims import is_claimed
from bloxserver.engine.queue.heartbeat import Heartbeat
from bloxserver.engine.queue.values import LeaseKey
from bloxserver.models.database import Database, WakeReason, wake_engine_after_commit
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.postgres import APPLICATION_NAME, IDLE_SECONDS
from bloxserver.models.tables import ExecutionRecord, WorkerRecord
from bloxserver.models.transient_errors import describe_error, is_connection_error
from bloxserver.models.types import database_now
from bloxserver.observability import metrics
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

STALE_AFTER = timedelta(seconds=IDLE_SECONDS)
DELETE_AFTER_TIMEOUTS = 100
"""The row of a worker is deleted after this many times `HEARTBEAT_TIMEOUT_SECONDS` without a heartbeat."""
BATCH = 500
"""Executions that are recovered in one transaction."""


class RecoveredExecution(NamedTuple):
    """An execution that was released, and the worker that had it."""

    id: UUID
    worker_id: str | None


class Recovery:
    """Recovers the executions of expired workers. It runs on every worker."""

    def __init__(self, settings: Settings, database: Database, heartbeat: Heartbeat, worker_id: str) -> None:
        self._interval_seconds = settings.heartbeat_interval_seconds
        self._loop = PollLoop(self._poll, failure="recovery of executions failed", retry_seconds=self._interval_seconds)
        self._timeout = timedelta(seconds=settings.heartbeat_timeout_seconds)
        self._database = database
        self._heartbeat = heartbeat
        self._worker_id = worker_id

    async def run(self) -> None:
        """Recover executions until cancelled."""
        await self._loop.run()

    async def _poll(self) -> float:
        await self.recover()
        return self._interval_seconds

    async def recover(self) -> int:
        """Release the executions of expired workers; returns how many."""
        try:
            await self._terminate_stale_sessions()
        except Exception as error:
            # The database user may lack the privilege; executions are recovered without it.
            if not is_connection_error(error):
                log.warning("stale database sessions not terminated", reason=describe_error(error))
        number = 0
        # Checked for each batch: this worker's own heartbeat may expire meanwhile.
        while self._heartbeat.can_declare_dead:
            async with self._database.transaction() as session:
                recovered = await reclaim_expired(session, self._timeout)
            log_recovered(recovered, self._worker_id)
            number += len(recovered)
            if len(recovered) < BATCH:
                async with self._database.transaction() as session:
                    await delete_expired_workers(session, DELETE_AFTER_TIMEOUTS * self._timeout)
                break
        return number

    async def _terminate_stale_sessions(self) -> None:
        """Before executions are released: stale sessions may hold locks on them, and the lock for claims."""
        if self._database.engine.dialect.name != "postgresql":
            return
        async with self._database.transaction() as session:
            terminated = await terminate_stale_sessions(session, STALE_AFTER)
        if terminated:
            log.warning("stale database sessions terminated", sessions=terminated)


async def recover_all(database: Database, worker_id: str) -> int:
    """Release all claimed executions, for a database of one process that has just started; returns how many."""
    number = 0
    while True:
        async with database.transaction() as session:
            recovered = await reclaim_all(session)
        log_recovered(recovered, worker_id)
        number += len(recovered)
        if len(recovered) < BATCH:
            return number


def log_recovered(recovered: Collection[RecoveredExecution], worker_id: str) -> None:
    """Log and count executions that `worker_id` has recovered."""
    metrics.EXECUTIONS_RECOVERED.inc(len(recovered))
    for execution in recovered:
        log.warning(
            "execution recovered",
            execution_id=str(execution.id),
            worker=execution.worker_id,
            recovered_by=worker_id,
        )


async def reclaim_expired(session: AsyncSession, silence: timedelta, limit: int = BATCH) -> list[RecoveredExecution]:
    """Release up to `limit` executions of workers without a heartbeat for `silence`, by the database's clock.

    Each counts as a crash of its worker; `refund_crashes` reverts that if the worker turns out to be alive.
    """
    alive = sa.select(WorkerRecord.worker_id).where(WorkerRecord.last_heartbeat_at >= await _before(session, silence))
    expired = sa.or_(ExecutionRecord.worker_id.is_(None), ExecutionRecord.worker_id.not_in(alive))
    return await _reclaim(session, expired, limit)


async def reclaim_all(session: AsyncSession, limit: int = BATCH) -> list[RecoveredExecution]:
    """Release up to `limit` claimed executions of any worker."""
    return await _reclaim(session, sa.true(), limit)


async def _reclaim(session: AsyncSession, condition: sa.ColumnElement[bool], limit: int) -> list[RecoveredExecution]:
    # A locked row is being written, so its worker may be alive: the next poll looks again.
    rows = await session.execute(
        sa.select(ExecutionRecord.id, ExecutionRecord.worker_id)
        .where(*is_claimed(), condition)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    recovered = [RecoveredExecution(row.id, row.worker_id) for row in rows]
    if recovered:
        await session.execute(
            sa.update(ExecutionRecord)
            .where(ExecutionRecord.id.in_([execution.id for execution in recovered]))
            .values(
                lease=None,
                worker_id=None,
                lost_lease=ExecutionRecord.lease,
                crash_count=ExecutionRecord.crash_count + 1,
            )
            .execution_options(synchronize_session=False)
        )
        wake_engine_after_commit(session, WakeReason.EXECUTION)
    return recovered


async def refund_crashes(session: AsyncSession, lost: Collection[LeaseKey]) -> None:
    """Revert the crashes that recovery counted when it ended these leases: their worker did not crash.

    Does nothing for a lease that ended in another way, for one that was refunded before, and for an execution that was
    recovered again since.
    """
    row = ExecutionRecord.metadata.tables[ExecutionRecord.__tablename__]
    await session.execute(
        sa.update(row)
        .where(
            row.c.id == sa.bindparam("of"),
            row.c.lost_lease == sa.bindparam("lost"),
            row.c.status == ExecutionStatus.RUNNING,
            row.c.crash_count > 0,
        )
        .values(crash_count=row.c.crash_count - 1, lost_lease=None),
        [{"of": execution_id, "lost": lease} for execution_id, lease in sorted(lost)],
    )


async def delete_expired_workers(session: AsyncSession, silence: timedelta) -> None:
    """Delete the rows of workers without a heartbeat for `silence`."""
    await session.execute(
        sa.delete(WorkerRecord).where(WorkerRecord.last_heartbeat_at < await _before(session, silence))
    )


async def _before(session: AsyncSession, span: timedelta) -> datetime:
    return (await session.execute(sa.select(database_now()))).scalar_one() - span


# The server counts a session as `active` whose process is frozen or cut off between two messages of one statement. It
# waits for the client, and neither the statement timeout nor the idle timeout ends it.
_STALE = sa.text("""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = :application
AND xact_start IS NOT NULL AND wait_event = 'ClientRead' AND pid <> pg_backend_pid()
AND state_change < clock_timestamp() - CAST(:silence AS interval)
""").bindparams(sa.bindparam("silence", type_=sa.Interval()))


async def terminate_stale_sessions(session: AsyncSession, silence: timedelta) -> int:
    """Terminate sessions whose open transaction has waited for its client for `silence`; returns their number.

    PostgreSQL only. Affects sessions of this application alone, whose transactions wait for nothing but the database.
    """
    ended: int = (await session.execute(_STALE, {"application": APPLICATION_NAME, "silence": silence})).scalar_one()
    return ended
