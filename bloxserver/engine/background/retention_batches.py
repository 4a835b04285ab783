"""Deletes what need not be kept, in transactions that are short whatever is in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.background.expired import ENDED, Expired, FlowExcess, Limits, StepSize, spare_versions
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord, FlowVersionRecord

PRUNE_LOCK = 0x626C6F78_707275
"""Advisory lock: one process deletes at a time."""
MAX_ROWS = 500
MAX_BYTES = 8 * 1024 * 1024
"""What one transaction deletes of rows, and of payloads unless it is a single row."""
MAX_VERSIONS = 10
"""A definition may be as large as a request."""


class RetentionLockBusy(Exception):
    """Another process deletes at this moment."""


@dataclass
class Batch:
    """What one transaction deletes."""

    execution_ids: list[UUID] = field(default_factory=list)
    """With all their steps, which are here, or went before."""
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
    """Divide executions and their steps, as `read_step_sizes` gives them, into batches.

    An execution goes with its steps in one, unless they alone are too much: then steps go first. Where the steps are
    not `complete`, the execution of the last one, and those that come after it, stay.
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
    """Rows that were deleted, or would be."""

    executions: int = 0
    steps: int = 0
    versions: int = 0
    lock_busy: bool = False
    """Whether another process was found to be at it, which does the rest."""

    @property
    def rows(self) -> int:
        return self.executions + self.steps + self.versions

    def add(self, other: PruneResult) -> None:
        self.executions += other.executions
        self.steps += other.steps
        self.versions += other.versions


async def delete_batch(session: AsyncSession, batch: Batch) -> PruneResult:
    """Delete what is in the batch, but of no execution that runs, or that somebody holds at this moment.

    Raises `RetentionLockBusy`.
    """
    await take_turn(session)
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
    # What else hangs on an execution goes by the foreign keys.
    executions = await _delete(session, ExecutionRecord, [one for one in batch.execution_ids if one in held])
    return PruneResult(executions=executions, steps=steps)


async def delete_versions(session: AsyncSession, flow: FlowExcess, limits: Limits) -> PruneResult:
    """Delete up to `MAX_VERSIONS` of the flow's expired versions; raises `RetentionLockBusy`."""
    await take_turn(session)
    spare = spare_versions(flow, limits).limit(MAX_VERSIONS)
    deleted = await session.execute(
        sa.delete(FlowVersionRecord)
        .where(FlowVersionRecord.id.in_(spare))
        .returning(FlowVersionRecord.id)
        .execution_options(synchronize_session=False)
    )
    return PruneResult(versions=len(deleted.all()))


async def _delete(
    session: AsyncSession, table: type[ExecutionRecord | ExecutionStepRecord], ids: Sequence[UUID]
) -> int:
    if not ids:
        return 0
    deleted = await session.execute(
        sa.delete(table).where(table.id.in_(ids)).returning(table.id).execution_options(synchronize_session=False)
    )
    return len(deleted.all())


async def take_turn(session: AsyncSession) -> None:
    """Keep other processes from deleting until this transaction ends; raises `RetentionLockBusy` where one does."""
    if session.get_bind().dialect.name != "postgresql":
        return
    if not await session.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(PRUNE_LOCK))):
        raise RetentionLockBusy
