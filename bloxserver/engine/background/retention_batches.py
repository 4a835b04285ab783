"""Deletes any number of executions of any size, with their steps, in short transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.background.expired import (
    ENDED,
    Expired,
    Limits,
    Position,
    StepSize,
    VersionExcess,
    expired_events,
    read_step_sizes,
    spare_versions,
)
from bloxserver.models.database import Database
from bloxserver.models.execution_totals import DELETE_EMPTY_BUCKETS
from bloxserver.models.tables import (
    AuditEventRecord,
    ExecutionRecord,
    ExecutionSeriesRecord,
    ExecutionStepRecord,
    FlowVersionRecord,
    IdempotencyKeyRecord,
    LlmCallRecord,
)
from bloxserver.services.idempotency import KEPT

PRUNE_LOCK = 0x626C6F78_707275
"""Advisory lock of retention: one process deletes at a time."""
MAX_ROWS = 500
MAX_BYTES = 8 * 1024 * 1024
"""The rows that one transaction deletes, and the size of their payloads unless it deletes a single row."""
MAX_VERSIONS = 10
"""A definition may be as large as a request."""


class RetentionLockBusy(Exception):
    """Another process has the advisory lock."""


@dataclass
class Batch:
    """The rows that one transaction deletes."""

    execution_ids: list[UUID] = field(default_factory=list)
    """Executions whose steps are all in this batch or in earlier ones."""
    steps: list[StepSize] = field(default_factory=list)
    size: int = 0

    def has_room(self, rows: int, size: int) -> bool:
        used = len(self.execution_ids) + len(self.steps)
        return used == 0 or (used + rows <= MAX_ROWS and self.size + size <= MAX_BYTES)

    def add(self, item: Expired | StepSize) -> None:
        if isinstance(item, StepSize):
            self.steps.append(item)
        else:
            self.execution_ids.append(item.position.id)
        self.size += item.size


def batches_of(expired: Iterable[Expired], steps: Sequence[StepSize], *, complete: bool) -> Iterator[Batch]:
    """Divide executions and their steps, as `read_step_sizes` returns them, into batches.

    An execution is in one batch with its steps. If that exceeds a batch, its steps come first, in several batches. If
    `steps` is not `complete`, the execution of the last step and the executions after it are left out.
    """
    steps_of = {execution_id: list(group) for execution_id, group in groupby(steps, lambda step: step.execution_id)}
    last = steps[-1].execution_id if steps and not complete else None
    batch = Batch()
    for execution in sorted(expired, key=lambda execution: execution.position.id):
        execution_id = execution.position.id
        items: list[Expired | StepSize] = [*steps_of.get(execution_id, ())]
        if execution_id != last:
            items.append(execution)
        if not batch.has_room(len(items), sum(item.size for item in items)):
            yield batch
            batch = Batch()
        for item in items:
            if not batch.has_room(1, item.size):
                yield batch
                batch = Batch()
            batch.add(item)
        if execution_id == last:
            break
    if batch.steps or batch.execution_ids:
        yield batch


@dataclass
class PruneResult:
    """The number of rows that were deleted, or that a dry run would delete."""

    executions: int = 0
    steps: int = 0
    versions: int = 0
    audit_events: int = 0
    others: int = 0
    """Rows of all other tables."""
    lock_busy: bool = False
    """Whether the run ended early, because another process has the advisory lock."""

    @property
    def rows(self) -> int:
        return self.executions + self.steps + self.versions + self.audit_events + self.others

    def add(self, other: PruneResult) -> None:
        self.executions += other.executions
        self.steps += other.steps
        self.versions += other.versions
        self.audit_events += other.audit_events
        self.others += other.others


Delete = Callable[[AsyncSession], Awaitable[PruneResult]]
STEPS = 500
"""Steps that one statement reads."""


class BatchDeleter:
    """Deletes in transactions with pauses between them, under an advisory lock."""

    def __init__(
        self,
        database: Database,
        *,
        lock: int,
        min_interval_seconds: float,
        on_delete: Callable[[PruneResult], None] = lambda deleted: None,
    ) -> None:
        self._database = database
        self._lock = lock
        self._min_interval_seconds = min_interval_seconds
        self._on_delete = on_delete

    async def delete_executions(self, expired: Sequence[Expired], result: PruneResult) -> None:
        """Delete these executions, apart from those that run or are locked. Raises `RetentionLockBusy`."""
        left = {execution.position.id: execution for execution in expired}
        while left:
            async with self._database.transaction(read_only=True) as session:
                steps = await read_step_sizes(session, left, STEPS)
            complete, before = len(steps) < STEPS, result.rows
            for batch in batches_of(left.values(), steps, complete=complete):
                await self.in_transaction(partial(delete_batch, batch=batch, lock=self._lock), result)
                for execution_id in batch.execution_ids:
                    del left[execution_id]
            if complete or result.rows == before:
                return

    async def in_transaction(self, delete: Delete, result: PruneResult) -> int:
        """Delete in a separate transaction, and pause. Returns the number of rows."""
        async with self._database.transaction() as session:
            deleted = await delete(session)
        result.add(deleted)
        self._on_delete(deleted)
        await asyncio.sleep(self._min_interval_seconds)
        return deleted.rows


async def delete_batch(session: AsyncSession, batch: Batch, lock: int = PRUNE_LOCK) -> PruneResult:
    """Delete the rows of the batch, apart from executions that run or are locked, and their steps.

    Raises `RetentionLockBusy`.
    """
    await acquire_advisory_lock(session, lock)
    touched = {*batch.execution_ids, *(step.execution_id for step in batch.steps)}
    free = await session.scalars(
        sa.select(ExecutionRecord.id)
        .where(ExecutionRecord.id.in_(touched), ENDED)
        .order_by(ExecutionRecord.id)
        .with_for_update(skip_locked=True)
    )
    held = set(free)
    step_ids = [step.id for step in batch.steps if step.execution_id in held]
    steps = await _delete(session, ExecutionStepRecord, step_ids)
    # Failure notifications are deleted by their foreign key.
    executions = await _delete(session, ExecutionRecord, [one for one in batch.execution_ids if one in held])
    return PruneResult(executions=executions, steps=steps)


async def delete_versions(session: AsyncSession, flow: VersionExcess, limits: Limits) -> PruneResult:
    """Delete up to `MAX_VERSIONS` of the flow's expired versions; raises `RetentionLockBusy`."""
    await acquire_advisory_lock(session)
    spare = spare_versions(flow, limits).limit(MAX_VERSIONS)
    deleted = await session.execute(
        sa.delete(FlowVersionRecord)
        .where(FlowVersionRecord.id.in_(spare))
        .returning(FlowVersionRecord.id)
        .execution_options(synchronize_session=False)
    )
    return PruneResult(versions=len(deleted.all()))


async def delete_events(session: AsyncSession, since: datetime) -> PruneResult:
    """Delete up to `MAX_ROWS` audit events that are older; raises `RetentionLockBusy`."""
    await acquire_advisory_lock(session)
    deleted = await session.execute(
        sa.delete(AuditEventRecord)
        .where(AuditEventRecord.id.in_(expired_events(since).limit(MAX_ROWS)))
        .returning(AuditEventRecord.id)
        .execution_options(synchronize_session=False)
    )
    return PruneResult(audit_events=len(deleted.all()))


async def delete_calls(session: AsyncSession, since: datetime) -> PruneResult:
    """Delete up to `MAX_ROWS` calls of language models that are older; raises `RetentionLockBusy`."""
    await acquire_advisory_lock(session)
    return PruneResult(others=await delete_some_calls(session, LlmCallRecord.created_at < since))


async def delete_some_calls(session: AsyncSession, condition: sa.ColumnElement[bool]) -> int:
    """Delete up to `MAX_ROWS` calls of language models. Returns their number."""
    call = LlmCallRecord
    deleted = await session.execute(
        sa.delete(call)
        .where(call.id.in_(sa.select(call.id).where(condition).limit(MAX_ROWS)))
        .returning(call.id)
        .execution_options(synchronize_session=False)
    )
    return len(deleted.all())


async def delete_empty_buckets(session: AsyncSession, flow_id: UUID, until: Position) -> PruneResult:
    """Delete up to `MAX_ROWS` buckets of the series that count no execution; raises `RetentionLockBusy`.

    On SQLite, the triggers have deleted them.
    """
    if session.get_bind().dialect.name != "postgresql":
        return PruneResult()
    await acquire_advisory_lock(session)
    series = ExecutionSeriesRecord.__table__.c
    values = {"flow_id": flow_id, "mode": until.mode, "until": until.started_at, "limit": MAX_ROWS}
    types = [sa.bindparam(name, type_=series[of].type) for name, of in (("flow_id", "flow_id"), ("until", "start"))]
    deleted = await session.execute(sa.text(DELETE_EMPTY_BUCKETS).bindparams(*types), values)
    return PruneResult(others=len(deleted.all()))


async def delete_idempotency_keys(session: AsyncSession, moment: datetime) -> PruneResult:
    """Delete about `MAX_ROWS` idempotency keys that expired more than a day before `moment`.

    Earlier, a server whose clock is late may still regard them as valid. Raises `RetentionLockBusy`.
    """
    await acquire_advisory_lock(session)
    created_at, expired = IdempotencyKeyRecord.created_at, moment - KEPT - timedelta(days=1)
    oldest = sa.select(created_at).where(created_at < expired).order_by(created_at)
    last = oldest.offset(MAX_ROWS - 1).limit(1).scalar_subquery()
    deleted = await session.execute(
        sa.delete(IdempotencyKeyRecord)
        .where(created_at < expired, created_at <= sa.func.coalesce(last, expired))
        .returning(created_at)
        .execution_options(synchronize_session=False)
    )
    return PruneResult(others=len(deleted.all()))


async def _delete(
    session: AsyncSession, table: type[ExecutionRecord | ExecutionStepRecord], ids: Sequence[UUID]
) -> int:
    if not ids:
        return 0
    deleted = await session.execute(
        sa.delete(table).where(table.id.in_(ids)).returning(table.id).execution_options(synchronize_session=False)
    )
    return len(deleted.all())


async def acquire_advisory_lock(session: AsyncSession, lock: int = PRUNE_LOCK) -> None:
    """Take the advisory lock until the transaction ends; raises `RetentionLockBusy` if another process has it."""
    if session.get_bind().dialect.name != "postgresql":
        return
    if not await session.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(lock))):
        raise RetentionLockBusy
