"""Checkpoints: the stored progress of executions. Those that arrive together share a transaction (group commit)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.queue.checkpoint_statements import (
    END_COLUMNS,
    LEASE_COLUMNS,
    STEP_COLUMNS,
    save_group,
    save_steps_of,
    save_success,
)
from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.leases import valid_leases
from bloxserver.engine.queue.values import LeaseKey, LeaseLost
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.array_rows import arrays_of
from bloxserver.models.connection_pool import current_tenant
from bloxserver.models.database import Database
from bloxserver.models.enums import StepStatus
from bloxserver.models.execution_changes import announce_changes
from bloxserver.models.tables import ExecutionRecord
from bloxserver.models.transient_errors import describe_error
from bloxserver.observability import metrics
from bloxserver.services.transitions import note_successes

log = structlog.stdlib.get_logger("bloxserver.engine")

LARGE_COLUMNS = ("input_payload", "output_payload", "state")
"""The columns of a step whose size users control."""

MAX_GROUP = 100
"""Checkpoints in one transaction."""
MAX_GROUP_STEPS = 200
MAX_GROUP_CHARACTERS = 256 * 1024
"""The size from which a transaction gets no more checkpoints, so that small ones do not wait for large ones."""
LARGE_CHARACTERS = 32 * 1024
LARGE_STEPS = 20
"""The sizes from which a checkpoint shares a transaction only with others of its user."""
MAX_SINGLE_WRITES = 4
"""Checkpoints that are written alone at the same time. Each may wait for a lock, and occupies a connection."""


@dataclass(frozen=True)
class Checkpoint:
    """The progress of an execution: steps that have changed, and perhaps its output."""

    execution: ClaimedExecution
    steps: Sequence[dict[str, Any]]
    output: str | None = None
    """Set if the execution succeeds with these steps, and no other execution waits for it."""
    is_filtered: bool = False
    """Whether no condition chose a listener for any of its outputs."""

    @property
    def characters(self) -> int:
        """The size of its large columns."""
        return sum(len(step[name] or "") for step in self.steps for name in LARGE_COLUMNS)

    @property
    def is_large(self) -> bool:
        return len(self.steps) >= LARGE_STEPS or self.characters >= LARGE_CHARACTERS

    @property
    def made_progress(self) -> bool:
        """Whether an execution with crashes has ended a step. It may then not be the cause of the crashes."""
        return self.execution.crash_count > 0 and any(step["status"] is not StepStatus.RUNNING for step in self.steps)


async def save_checkpoints(
    session: AsyncSession, checkpoints: Sequence[Checkpoint], *, skip_locked: bool = False
) -> set[LeaseKey]:
    """Save checkpoints, at most one for each execution; returns the leases of those that were not saved.

    Their leases are lost or, with `skip_locked`, their rows may also be locked by other transactions. Executes one
    statement on PostgreSQL, unless one of the checkpoints has `made_progress`.
    """
    write = _write_on_postgresql if session.get_bind().dialect.name == "postgresql" else _write_on_sqlite
    valid = await write(session, checkpoints, skip_locked)
    saved = [checkpoint for checkpoint in checkpoints if checkpoint.execution.lease_key in valid]
    announce_changes(session, {checkpoint.execution.id for checkpoint in saved})
    ended = {each.execution.id: each.execution.trigger_type for each in saved if each.output is not None}
    if ended:
        note_successes(session, ended)
    progressed = [checkpoint.execution.id for checkpoint in saved if checkpoint.made_progress]
    if progressed:
        await reset_crash_count(session, progressed)
    return {checkpoint.execution.lease_key for checkpoint in checkpoints} - valid


async def _write_on_postgresql(
    session: AsyncSession, checkpoints: Sequence[Checkpoint], skip_locked: bool
) -> set[LeaseKey]:
    """Write steps and successes; returns the leases that are valid."""
    leases = [dict(zip(LEASE_COLUMNS, each.execution.lease_key, strict=True)) for each in checkpoints]
    steps = [step for checkpoint in checkpoints for step in checkpoint.steps]
    ended = [
        {"id": each.execution.id, "output": each.output, "filtered": each.is_filtered}
        for each in checkpoints
        if each.output is not None
    ]
    rows = await session.scalars(
        save_group(skip_locked=skip_locked),
        arrays_of("lease", LEASE_COLUMNS, leases)
        | arrays_of("step", STEP_COLUMNS, steps)
        | arrays_of("ended", END_COLUMNS, ended)
        | {"moment": now()},
    )
    valid = set(rows)
    return {each.execution.lease_key for each in checkpoints if each.execution.id in valid}


async def _write_on_sqlite(
    session: AsyncSession, checkpoints: Sequence[Checkpoint], skip_locked: bool
) -> set[LeaseKey]:
    """The same. No row is locked, because the transaction has the lock of the file."""
    valid = await valid_leases(session, [checkpoint.execution.lease_key for checkpoint in checkpoints])
    saved = [checkpoint for checkpoint in checkpoints if checkpoint.execution.lease_key in valid]
    await save_steps(session, [step for checkpoint in saved for step in checkpoint.steps])
    moment = now()
    ended = [
        {
            "ended_id": each.execution.id,
            "ended_output": each.output,
            "ended_filtered": each.is_filtered,
            "moment": moment,
        }
        for each in saved
        if each.output is not None
    ]
    if ended:
        await session.execute(save_success(), ended)
    return valid


async def save_steps(session: AsyncSession, steps: Sequence[dict[str, Any]]) -> None:
    """Insert or update steps. The caller has locked the leases, or written the executions in this transaction."""
    if steps:
        announce_changes(session, {step["execution_id"] for step in steps})
        dialect = session.get_bind().dialect.name
        rows = arrays_of("step", STEP_COLUMNS, steps) if dialect == "postgresql" else steps
        await session.execute(save_steps_of(dialect), rows)


async def reset_crash_count(session: AsyncSession, execution_ids: Collection[UUID]) -> None:
    """Reset the crash count of executions that have made progress. The caller has locked their rows."""
    await session.execute(
        sa.update(ExecutionRecord)
        .where(ExecutionRecord.id.in_(execution_ids))
        .values(crash_count=0)
        .execution_options(synchronize_session=False)
    )


Entry = tuple[Checkpoint, asyncio.Future[None]]


class CheckpointWriter:
    """Saves checkpoints in groups: the small ones of all users together, the large ones of each user.

    The users take turns for the places in a group, and the groups for a connection.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._single_write_slots = asyncio.Semaphore(MAX_SINGLE_WRITES)
        self._small = GroupCommit(database, self._single_write_slots, "checkpoints")
        self._large: dict[UUID, GroupCommit] = {}

    async def save(self, checkpoint: Checkpoint) -> None:
        """Return when the checkpoint is committed; raises `LeaseLost`, and database errors that are not transient."""
        if not checkpoint.is_large:
            await self._small.save(checkpoint)
            return
        user_id = checkpoint.execution.user_id
        group = self._large.setdefault(user_id, GroupCommit(self._database, self._single_write_slots, user_id))
        try:
            await group.save(checkpoint)
        finally:
            if not group.saving:
                self._large.pop(user_id, None)


class GroupCommit:
    """Checkpoints that arrive during a transaction are written together in the next one.

    The group never waits for a lock. A checkpoint whose row is locked is written alone, while others are committed.
    """

    def __init__(self, database: Database, single_write_slots: asyncio.Semaphore, tenant: Hashable) -> None:
        """`tenant` waits for a connection, see `ConnectionPool`."""
        self._database = database
        self._tenant = tenant
        self._entries: dict[UUID, deque[Entry]] = {}
        """By user, in the order of their turns."""
        self._writing: asyncio.Task[None] | None = None
        self._single_writes: set[asyncio.Task[None]] = set()
        self._single_write_slots = single_write_slots
        self.saving = 0
        """The number of calls of `save` that have not returned."""

    async def save(self, checkpoint: Checkpoint) -> None:
        """See `CheckpointWriter.save`."""
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._entries.setdefault(checkpoint.execution.user_id, deque()).append((checkpoint, saved))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        self.saving += 1
        try:
            await saved
        finally:
            self.saving -= 1

    async def _write(self) -> None:
        current_tenant.set(self._tenant)
        while self._entries:
            entries = self._next_group()
            try:
                remaining = await self._write_group(entries)
            except Exception as error:
                # One of them may be the cause: each is written alone, so that the others are saved.
                log.debug(
                    "group commit failed; writing checkpoints alone", reason=describe_error(error), number=len(entries)
                )
                remaining = entries
            for entry in remaining:
                self._single_writes.add(task := asyncio.create_task(self._write_alone(entry)))
                task.add_done_callback(self._single_writes.discard)

    def _next_group(self) -> list[Entry]:
        """Remove and return the checkpoints of the next transaction."""
        group: list[Entry] = []
        steps = characters = 0
        while (
            self._entries and len(group) < MAX_GROUP and steps < MAX_GROUP_STEPS and characters < MAX_GROUP_CHARACTERS
        ):
            user_id, entries = next(iter(self._entries.items()))
            del self._entries[user_id]
            checkpoint, saved = entries.popleft()
            if entries:
                self._entries[user_id] = entries
            if not saved.done():
                group.append((checkpoint, saved))
                steps += len(checkpoint.steps)
                characters += checkpoint.characters
        return group

    async def _write_group(self, entries: Sequence[Entry]) -> list[Entry]:
        """Write entries in one transaction; returns those that were not written, whose leases may be lost."""
        if not entries:
            return []
        # An execution that this worker has claimed again may have two. The others are written alone.
        group = {entry[0].execution.id: entry for entry in reversed(entries)}
        remaining = [entry for entry in entries if group[entry[0].execution.id] is not entry]
        checkpoints = [checkpoint for checkpoint, _ in group.values()]
        is_single = not any(checkpoint.made_progress for checkpoint in checkpoints)
        async with self._database.transaction(single_statement=is_single) as session:
            unsaved = await save_checkpoints(session, checkpoints, skip_locked=True)
        metrics.CHECKPOINT_BATCH_SIZE.observe(len(group) - len(unsaved))
        for entry in group.values():
            if entry[0].execution.lease_key in unsaved:
                remaining.append(entry)
            else:
                _resolve(entry[1], None)
        return remaining

    async def _write_alone(self, entry: Entry) -> None:
        checkpoint, saved = entry

        async def write(session: AsyncSession) -> set[LeaseKey]:
            # Held for a single try, so that a row that stays locked does not block other single writes.
            async with self._single_write_slots:
                return await save_checkpoints(session, [checkpoint])

        try:
            lost = await retry_transaction(self._database, write)
        except Exception as error:
            _resolve(saved, error)
        else:
            _resolve(saved, LeaseLost() if lost else None)


def _resolve(saved: asyncio.Future[None], error: Exception | None) -> None:
    if saved.done():
        return  # the task that waited was cancelled
    if error is None:
        saved.set_result(None)
    else:
        saved.set_exception(error)
