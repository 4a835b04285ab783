"""The life of an execution on the worker that took it: its steps kept, parked, handed over or ended.

Every write names the lease: a worker that was frozen and comes back after another took over changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.queue.claims import ClaimedExecution, LeaseKey
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from bloxserver.services.transitions import end_execution as write_end
from bloxserver.services.usage import count_tokens

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


class LeaseLost(Exception):
    """The execution has ended, is gone, or belongs to another worker by now."""


async def hold(session: AsyncSession, execution: ClaimedExecution) -> None:
    """Keep the lease from being taken until this transaction ends; raises `LeaseLost`."""
    held = await session.scalar(sa.select(ExecutionRecord.id).where(*_ours(execution)).with_for_update())
    if held is None:
        raise LeaseLost


async def keep_lease(session: AsyncSession, execution: ClaimedExecution) -> None:
    """As `hold`, but others may do so at the same time: steps of one execution do not wait for each other."""
    held = await session.scalar(sa.select(ExecutionRecord.id).where(*_ours(execution)).with_for_update(read=True))
    if held is None:
        raise LeaseLost


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


async def record_usage(session: AsyncSession, execution: ClaimedExecution, total: tuple[int, int]) -> None:
    """Note what the execution has used of language models by now, and count on the user's usage what is new of it.

    The caller holds the execution's row to write it.
    """
    read, written = total
    before = (
        await session.execute(
            sa.select(ExecutionRecord.input_tokens, ExecutionRecord.output_tokens).where(
                ExecutionRecord.id == execution.id
            )
        )
    ).one()
    new = (max(0, read - before.input_tokens), max(0, written - before.output_tokens))
    if new == (0, 0):
        return
    await session.execute(
        sa.update(ExecutionRecord)
        .where(ExecutionRecord.id == execution.id)
        .values(input_tokens=read, output_tokens=written)
    )
    await count_tokens(session, execution.user_id, execution.period, *new)


async def suspend(
    session: AsyncSession, execution: ClaimedExecution, resume_at: datetime, called: Sequence[UUID] = ()
) -> None:
    """Leave the worker until `resume_at`, when a worker takes the execution anew; raises `LeaseLost`.

    `called` are the executions that it waits for: the end of one brings it back at once.
    """
    values = {
        "resume_at": resume_at,
        "active_ms": execution.active_until_now_ms(),
        "lease": None,
        "worker_id": None,
        "crash_count": 0,
    }
    written = await session.execute(
        sa.update(ExecutionRecord).where(*_ours(execution)).values(values).returning(ExecutionRecord.id)
    )
    if written.first() is None:
        raise LeaseLost
    if called:
        # After the row was written: one that ends from here on waits for this transaction, and then wakes the caller.
        running = await session.scalar(
            sa.select(sa.func.count()).where(
                ExecutionRecord.id.in_(called), ExecutionRecord.status == ExecutionStatus.RUNNING
            )
        )
        if running != len(called):
            await session.execute(
                sa.update(ExecutionRecord).where(ExecutionRecord.id == execution.id).values(resume_at=now())
            )
    wake_engine_after_commit(session, WakeReason.EXECUTION)


async def release_leases(session: AsyncSession, executions: Sequence[ClaimedExecution]) -> None:
    """Leave executions, as far as they have come, to whichever worker takes them next."""
    if executions:
        row = ExecutionRecord.metadata.tables[ExecutionRecord.__tablename__]
        ours = (row.c.id == sa.bindparam("of"), row.c.lease == sa.bindparam("held"))
        await session.execute(
            sa.update(row)
            .where(*ours, row.c.status == ExecutionStatus.RUNNING)
            .values(lease=None, worker_id=None, active_ms=sa.bindparam("worked")),
            [{"of": taken.id, "held": taken.lease, "worked": taken.active_until_now_ms()} for taken in executions],
        )
        wake_engine_after_commit(session, WakeReason.EXECUTION)


async def end_execution(
    session: AsyncSession,
    execution: ClaimedExecution,
    status: ExecutionStatus,
    *,
    output: str | None = None,
    error: str | None = None,
) -> None:
    """Write the end that the worker came to; raises `LeaseLost` where it has ended before."""
    conditions = _ours(execution)
    if not await write_end(
        session, execution.id, status, *conditions, parent_id=execution.parent_id, output=output, error=error
    ):
        raise LeaseLost


async def lost_leases(session: AsyncSession, holds: Collection[LeaseKey]) -> set[LeaseKey]:
    """Of what a worker has, what it must not go on with."""
    ids = {execution_id for execution_id, _ in holds}
    held = await session.execute(
        sa.select(ExecutionRecord.id, ExecutionRecord.lease).where(
            ExecutionRecord.id.in_(ids), ExecutionRecord.status == ExecutionStatus.RUNNING
        )
    )
    return set(holds) - {(row.id, row.lease) for row in held}


def _ours(execution: ClaimedExecution) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        ExecutionRecord.id == execution.id,
        ExecutionRecord.lease == execution.lease,
        ExecutionRecord.status == ExecutionStatus.RUNNING,
    )
