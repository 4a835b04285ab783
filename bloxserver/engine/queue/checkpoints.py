"""Checkpoints: how far executions have come. Checkpoints that arrive together share one transaction (group commit)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.leases import lock_leases
from bloxserver.engine.queue.values import LeaseKey, LeaseLost
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.database import Database
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from bloxserver.observability import metrics
from bloxserver.services.transitions import end_successes

log = structlog.stdlib.get_logger("bloxserver.engine")

CHANGING = (
    "sequence",
    "status",
    "attempt",
    "output_payload",
    "error_message",
    "error_code",
    "completed_at",
    "duration_ms",
    "input_tokens",
    "output_tokens",
    "routed_to",
    "called_id",
    "state",
)
"""The columns of a step that change while it is handled."""

MAX_BATCH = 100
"""Checkpoints in one transaction."""


@dataclass(frozen=True)
class Checkpoint:
    """How far an execution has come."""

    execution: ClaimedExecution
    steps: Sequence[dict[str, Any]]
    output: str | None = None
    """Where it ends with these steps, as a success that no other execution waits for."""

    @property
    def made_progress(self) -> bool:
        """Whether it came beyond what a worker died with: it may not have been the reason."""
        return self.execution.crash_count > 0 and any(step["status"] is not StepStatus.RUNNING for step in self.steps)


async def save_checkpoints(session: AsyncSession, checkpoints: Sequence[Checkpoint]) -> set[LeaseKey]:
    """Keep checkpoints, one for each hold; returns the holds that were lost."""
    held = await lock_leases(session, [checkpoint.execution.lease_key for checkpoint in checkpoints])
    kept = [checkpoint for checkpoint in checkpoints if checkpoint.execution.lease_key in held]
    await save_steps(session, [step for checkpoint in kept for step in checkpoint.steps])
    ended = {checkpoint.execution.id: checkpoint.output for checkpoint in kept if checkpoint.output is not None}
    if ended:
        triggers = [checkpoint.execution.trigger_type for checkpoint in kept if checkpoint.output is not None]
        await end_successes(session, ended, triggers)
    progressed = [checkpoint.execution.id for checkpoint in kept if checkpoint.made_progress]
    if progressed:
        await reset_crash_count(session, progressed)
    return {checkpoint.execution.lease_key for checkpoint in checkpoints} - held


async def save_steps(session: AsyncSession, steps: Sequence[dict[str, Any]]) -> None:
    """Keep how far steps have come. The caller holds the leases, or has written the executions in this transaction."""
    if steps:
        # One that is there already goes on, or is the same: a commit whose answer was lost may have kept it.
        await session.execute(_upsert_of_steps(session.get_bind().dialect.name), steps)


@lru_cache
def _upsert_of_steps(dialect: str) -> sa.Executable:
    """Made once: building it takes longer than running it."""
    table = ExecutionStepRecord.__table__
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    new = statement.excluded
    changes: dict[str, Any] = {name: new[name] for name in CHANGING}
    changes["input_payload"] = sa.func.coalesce(new.input_payload, table.c.input_payload)
    # What was given up in mid-save may be written late, after what came then.
    newer = new.sequence >= table.c.sequence
    upsert: sa.Executable = statement.on_conflict_do_update(
        index_elements=["execution_id", "key"], set_=changes, where=newer
    )
    return upsert


async def reset_crash_count(session: AsyncSession, execution_ids: Collection[UUID]) -> None:
    """These got further than what workers died with. The caller holds their rows."""
    await session.execute(
        sa.update(ExecutionRecord)
        .where(ExecutionRecord.id.in_(execution_ids))
        .values(crash_count=0)
        .execution_options(synchronize_session=False)
    )


Entry = tuple[Checkpoint, asyncio.Future[None]]


class CheckpointWriter:
    """What comes while a transaction is being written goes into the next one: alone, a checkpoint waits for nobody."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: list[Entry] = []
        self._writing: asyncio.Task[None] | None = None
        self._alone: set[asyncio.Task[None]] = set()

    async def save(self, checkpoint: Checkpoint) -> None:
        """Returns when the checkpoint is kept; raises `LeaseLost`, or why the database refuses it."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._entries.append((checkpoint, kept))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await kept

    async def _write(self) -> None:
        while self._entries:
            entries = [entry for entry in self._entries[:MAX_BATCH] if not entry[1].done()]
            del self._entries[:MAX_BATCH]
            try:
                await self._write_together(entries)
            except Exception as error:
                # One of them may be the reason: each for itself, so that the others, and those that come, are kept.
                log.debug("checkpoints are written one by one", error=type(error).__name__, number=len(entries))
                for entry in entries:
                    self._alone.add(task := asyncio.create_task(self._write_alone(entry)))
                    task.add_done_callback(self._alone.discard)

    async def _write_together(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        async with self._database.transaction() as session:
            lost = await save_checkpoints(session, [checkpoint for checkpoint, _ in entries])
        metrics.CHECKPOINT_BATCH_SIZE.observe(len(entries))
        for checkpoint, kept in entries:
            _settle(kept, LeaseLost() if checkpoint.execution.lease_key in lost else None)

    async def _write_alone(self, entry: Entry) -> None:
        checkpoint, kept = entry
        try:
            lost = await retry_transaction(self._database, lambda session: save_checkpoints(session, [checkpoint]))
        except Exception as error:
            _settle(kept, error)
        else:
            _settle(kept, LeaseLost() if lost else None)


def _settle(kept: asyncio.Future[None], error: Exception | None) -> None:
    if kept.done():
        return  # whoever wanted to know was stopped
    if error is None:
        kept.set_result(None)
    else:
        kept.set_exception(error)
