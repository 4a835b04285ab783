"""Completes the deletion of users, and of large flows and triggers, which requests have only marked as deleted.

All work is done in short transactions, so that other writes do not wait long. After a crash it continues with the
remaining rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.cancellations import cancel_subscriptions_of_deleted_users
from bloxserver.engine.background.account_deletions import finish_user, read_pending_users
from bloxserver.engine.background.expired import Position, read_ended
from bloxserver.engine.background.retention_batches import (
    MAX_ROWS,
    BatchDeleter,
    PruneResult,
    RetentionLockBusy,
    acquire_advisory_lock,
)
from bloxserver.engine.loops import PollLoop
from bloxserver.models.database import Database
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionSeriesRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVersionRecord,
    KeyValueRecord,
    TriggerRecord,
)
from bloxserver.models.transient_errors import is_transient
from bloxserver.queries.flows import has_running_executions
from bloxserver.services.deletions import FLOW_DELETED
from bloxserver.services.transitions import cancel_running

log = structlog.stdlib.get_logger("bloxserver.deletions")

DELETION_LOCK = 0x626C6F78_64656C
"""Advisory lock: one process completes deletions at a time. Retention has its own lock, so neither delays the other."""
INTERVAL_SECONDS = 60.0
"""Seconds between two polls for pending deletions. A request that marks one wakes the task at once."""
RETRY_SECONDS = 2.0
"""Pause if another process has the lock, or another transaction has locked rows that are to be deleted."""
MIN_INTERVAL_SECONDS = 0.05
"""Pause after each transaction, so that other writes can proceed."""
MAX_PENDING = 1_000
"""Flows, or triggers, that one run reads."""
ROWS_OF_FLOW: tuple[tuple[Any, int], ...] = (
    (TriggerRecord, 10),
    (FlowVersionRecord, 10),
    (KeyValueRecord, 100),
    (FailureNotificationRecord, 1_000),
    (ExecutionSeriesRecord, MAX_ROWS),
)
"""Tables whose rows of a flow are deleted after its executions, and rows per transaction.

Notifications of disabled schedules, signing secrets and deliveries are deleted with their triggers, by a cascade.
"""


@dataclass
class DeletionResult:
    """Completed deletions, the number of their rows, and whether all pending deletions are complete."""

    users: int = 0
    flows: int = 0
    triggers: int = 0
    detached: int = 0
    """Executions that no longer refer to a deleted trigger."""
    rows: PruneResult = field(default_factory=PruneResult)
    is_complete: bool = True


class Deletions:
    """Runs on every worker; on PostgreSQL one of them at a time finishes deletions."""

    def __init__(
        self,
        database: Database,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        min_interval_seconds: float = MIN_INTERVAL_SECONDS,
    ) -> None:
        self._database = database
        self._interval_seconds = interval_seconds
        self._retry_seconds = retry_seconds
        self._min_interval_seconds = min_interval_seconds
        self._deleter = BatchDeleter(database, lock=DELETION_LOCK, min_interval_seconds=min_interval_seconds)
        self._loop = PollLoop(self._poll, failure="finishing deletions failed", retry_seconds=retry_seconds)

    def wake(self) -> None:
        """Look for pending deletions now; to be called on the event loop."""
        self._loop.wake()

    async def run(self) -> None:
        """Finish pending deletions until cancelled."""
        await self._loop.run()

    async def _poll(self) -> float:
        result = await self.finish()
        if result.users or result.flows or result.triggers or result.detached or result.rows.rows:
            log.info(
                "deletions finished" if result.is_complete else "deletions continued",
                users=result.users,
                flows=result.flows,
                triggers=result.triggers,
                executions=result.rows.executions,
                steps=result.rows.steps,
                detached_executions=result.detached,
            )
        return self._interval_seconds if result.is_complete else self._retry_seconds

    async def count_pending(self) -> tuple[int, int]:
        """The flows and the triggers whose deletion is pending."""
        async with self._database.transaction(read_only=True) as session:
            return len(await _pending_flows(session)), len(await _pending_triggers(session))

    async def finish(self) -> DeletionResult:
        """Complete pending deletions. Skips locked rows, and ends early if another process has the advisory lock."""
        result = DeletionResult()
        async with self._database.transaction(read_only=True) as session:
            triggers, flows = await _pending_triggers(session), await _pending_flows(session)
        await self._finish_each(
            [
                *(partial(self._finish_trigger, trigger_id, result) for trigger_id in triggers),
                *(partial(self._finish_flow, flow_id, result) for flow_id in flows),
            ],
            result,
        )
        await cancel_subscriptions_of_deleted_users(self._database)
        async with self._database.transaction(read_only=True) as session:
            users = await read_pending_users(session)
        await self._finish_each([partial(self._finish_user, user_id, result) for user_id in users.ready], result)
        result.is_complete = result.is_complete and not users.others
        return result

    async def _finish_each(self, work: Sequence[Callable[[], Awaitable[bool]]], result: DeletionResult) -> None:
        for finish in work:
            try:
                done = await finish()
            except RetentionLockBusy:
                result.is_complete = False
                break
            except Exception as error:
                if is_transient(error):
                    raise
                # It is retried later, and does not delay the other deletions.
                log.error("deletion failed", exc_info=error)
                done = False
            result.is_complete = result.is_complete and done

    async def _finish_user(self, user_id: UUID, result: DeletionResult) -> bool:
        result.users += await finish_user(self._database, user_id)
        return True

    async def _finish_trigger(self, trigger_id: UUID, result: DeletionResult) -> bool:
        """Whether no execution refers to the trigger any more, and it was deleted."""
        while True:
            async with self._database.transaction() as session:
                detached = await _detach_executions(session, trigger_id)
            result.detached += detached
            if not detached:
                break
            await asyncio.sleep(self._min_interval_seconds)
        async with self._database.transaction() as session:
            deleted = await _delete_trigger(session, trigger_id)
        result.triggers += deleted
        return deleted

    async def _finish_flow(self, flow_id: UUID, result: DeletionResult) -> bool:
        """Whether all rows of the flow were deleted."""
        rows = PruneResult()
        try:
            await self._delete_executions(flow_id, rows)
            async with self._database.transaction(read_only=True) as session:
                if await session.scalar(sa.select(_has_executions(flow_id))):
                    return False  # the remaining executions still refer to rows of the other tables
            for table, limit in ROWS_OF_FLOW:
                delete = partial(_delete_some, table=table, flow_id=flow_id, limit=limit)
                while await self._deleter.in_transaction(delete, rows):
                    pass
            async with self._database.transaction() as session:
                deleted = await _delete_flow(session, flow_id)
        finally:
            result.rows.add(rows)
        result.flows += deleted
        return deleted

    async def _delete_executions(self, flow_id: UUID, rows: PruneResult) -> None:
        """Delete the flow's executions, apart from those that other transactions have locked."""
        after: Position | None = None
        while True:
            # For every pending flow, and before each page: callers in other flows wait for these executions.
            await self._cancel_running()
            async with self._database.transaction(read_only=True) as session:
                ended = await read_ended(session, flow_id, after, MAX_ROWS)
            if not ended:
                return
            await self._deleter.delete_executions(ended, rows)
            after = ended[-1].position

    async def _cancel_running(self) -> None:
        while True:
            async with self._database.transaction(read_only=True) as session:
                flow_id = await session.scalar(_pending(FlowRecord).where(has_running_executions()).limit(1))
            if flow_id is None:
                return
            async with self._database.transaction() as session:
                await acquire_advisory_lock(session, DELETION_LOCK)
                await cancel_running(session, flow_id, FLOW_DELETED)
            await asyncio.sleep(self._min_interval_seconds)


def _pending(table: type[FlowRecord | TriggerRecord]) -> sa.Select[UUID]:
    return sa.select(table.id).where(table.deleted_at.is_not(None)).order_by(table.deleted_at)


async def _pending_flows(session: AsyncSession) -> Sequence[UUID]:
    return (await session.scalars(_pending(FlowRecord).limit(MAX_PENDING))).all()


async def _pending_triggers(session: AsyncSession) -> Sequence[UUID]:
    """Pending triggers. Triggers of deleted flows are left out: they are deleted with their flows."""
    of_flow = _pending(TriggerRecord).join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
    return (await session.scalars(of_flow.where(FlowRecord.deleted_at.is_(None)).limit(MAX_PENDING))).all()


async def _detach_executions(session: AsyncSession, trigger_id: UUID) -> int:
    """Set `trigger_id` of a batch of executions to null; returns their number. Raises `RetentionLockBusy`."""
    await acquire_advisory_lock(session, DELETION_LOCK)
    batch = (
        sa.select(ExecutionRecord.id)
        .where(ExecutionRecord.trigger_id == trigger_id)
        .limit(MAX_ROWS)
        .with_for_update(skip_locked=True)
        # A plain subquery may be executed once for each row, and then finds more rows each time.
        .cte("batch")
    )
    return await _changed(
        session,
        sa.update(ExecutionRecord)
        .where(ExecutionRecord.id.in_(sa.select(batch.c.id)))
        .values(trigger_id=None)
        .returning(ExecutionRecord.id),
    )


async def _delete_trigger(session: AsyncSession, trigger_id: UUID) -> bool:
    await acquire_advisory_lock(session, DELETION_LOCK)
    refers = sa.select(ExecutionRecord.id).where(ExecutionRecord.trigger_id == trigger_id).exists()
    unused = TriggerRecord.id == trigger_id, ~refers
    return await _changed(session, sa.delete(TriggerRecord).where(*unused).returning(TriggerRecord.id)) > 0


async def _delete_some(session: AsyncSession, *, table: Any, flow_id: UUID, limit: int) -> PruneResult:
    """Delete a batch of a table's rows of the flow. Raises `RetentionLockBusy`."""
    await acquire_advisory_lock(session, DELETION_LOCK)
    key = sa.inspect(table).primary_key
    batch = sa.select(*key).where(table.flow_id == flow_id).limit(limit)
    deleted = await _changed(session, sa.delete(table).where(sa.tuple_(*key).in_(batch)).returning(key[0]))
    return PruneResult(versions=deleted) if table is FlowVersionRecord else PruneResult(others=deleted)


async def _delete_flow(session: AsyncSession, flow_id: UUID) -> bool:
    await acquire_advisory_lock(session, DELETION_LOCK)
    empty = FlowRecord.id == flow_id, ~_has_executions(flow_id)
    return await _changed(session, sa.delete(FlowRecord).where(*empty).returning(FlowRecord.id)) > 0


def _has_executions(flow_id: UUID) -> sa.Exists:
    return sa.select(ExecutionRecord.id).where(ExecutionRecord.flow_id == flow_id).exists()


async def _changed(session: AsyncSession, statement: Any) -> int:
    """The number of rows that the statement returns."""
    return len((await session.execute(statement.execution_options(synchronize_session=False))).all())
