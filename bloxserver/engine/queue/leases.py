"""Leases: an execution is suspended, released or ended by the worker that has its lease.

Every write requires the lease: a worker that was frozen, and whose executions were recovered, changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.values import LeaseKey, LeaseLost
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord
from bloxserver.queries.flows import flow_exists
from bloxserver.queries.resumptions import read_received
from bloxserver.services.transitions import end_execution as write_end
from bloxserver.services.usage import count_tokens


async def lock_lease(
    session: AsyncSession, key: tuple[UUID, UUID | None], *, read: bool = False, key_share: bool = False
) -> None:
    """Lock the execution's row until the transaction ends. Raises `LeaseLost` if the lease is not valid.

    `read` makes the lock a shared one. `key_share` lets other transactions insert rows that refer to the execution.
    """
    leased = sa.select(ExecutionRecord.id).where(*_has_lease(key)).with_for_update(read=read, key_share=key_share)
    if await session.scalar(leased) is None:
        raise LeaseLost


async def valid_leases(session: AsyncSession, keys: Collection[LeaseKey]) -> set[LeaseKey]:
    """Return the leases that are still valid, without a lock."""
    rows = await session.execute(_leases(), {"ids": [execution_id for execution_id, _ in keys]})
    return set(keys) & {(row.id, row.lease) for row in rows}


@cache
def _leases() -> sa.Executable:
    row = ExecutionRecord.__table__.c
    return sa.select(row.id, row.lease).where(
        row.id.in_(sa.bindparam("ids", expanding=True)), row.status == ExecutionStatus.RUNNING
    )


async def record_usage(session: AsyncSession, execution: ClaimedExecution, total: tuple[int, int]) -> None:
    """Store the tokens that the execution has used so far, and add the new ones to the user's usage.

    The caller has locked the execution's row.
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
    session: AsyncSession,
    execution: ClaimedExecution,
    resume_at: datetime,
    called: Sequence[UUID] = (),
    awaited: Collection[str] = (),
) -> None:
    """Give up the lease until `resume_at`, when a worker claims the execution again; raises `LeaseLost`.

    `called` are the executions that it waits for: when one of them ends, it resumes at once. `awaited` are the
    listeners that wait for calls.
    """
    values = {
        "resume_at": resume_at,
        "active_ms": execution.active_until_now_ms(),
        "cpu_ms": execution.cpu_until_now_ms(),
        "lease": None,
        "worker_id": None,
        "crash_count": 0,
    }
    written = await session.execute(
        sa.update(ExecutionRecord).where(*_has_lease(execution.lease_key)).values(values).returning(ExecutionRecord.id)
    )
    if written.first() is None:
        raise LeaseLost
    has_work = False
    if called:
        # Read after the update. An execution that ends later waits for this transaction, and then wakes the caller.
        # An execution that ended earlier woke no caller, because the caller was not suspended yet.
        running = await session.scalar(
            sa.select(sa.func.count()).where(
                ExecutionRecord.id.in_(called), ExecutionRecord.status == ExecutionStatus.RUNNING
            )
        )
        has_work = running != len(called)
    if awaited and not has_work:
        # The same: a call locks the row of the execution.
        has_work = not (await read_received(session, execution.id)).keys().isdisjoint(awaited)
    if has_work:
        await session.execute(
            sa.update(ExecutionRecord).where(ExecutionRecord.id == execution.id).values(resume_at=now())
        )
    wake_engine_after_commit(session, WakeReason.EXECUTION)


async def release_leases(session: AsyncSession, executions: Sequence[ClaimedExecution]) -> None:
    """Give up leases, so that another worker continues the executions from their saved steps."""
    if executions:
        row = ExecutionRecord.metadata.tables[ExecutionRecord.__tablename__]
        leased = (row.c.id == sa.bindparam("of"), row.c.lease == sa.bindparam("under"))
        await session.execute(
            sa.update(row)
            .where(*leased, row.c.status == ExecutionStatus.RUNNING)
            .values(lease=None, worker_id=None, active_ms=sa.bindparam("active"), cpu_ms=sa.bindparam("cpu")),
            [
                {
                    "of": each.id,
                    "under": each.lease,
                    "active": each.active_until_now_ms(),
                    "cpu": each.cpu_until_now_ms(),
                }
                for each in executions
            ],
        )
        wake_engine_after_commit(session, WakeReason.EXECUTION)


async def end_execution(
    session: AsyncSession,
    execution: ClaimedExecution,
    status: ExecutionStatus,
    *,
    output: str | None = None,
    error: str | None = None,
    is_stopped: bool = False,
    is_filtered: bool = False,
) -> None:
    """Write the end of the execution, see `transitions`; raises `LeaseLost`."""
    conditions = _has_lease(execution.lease_key)
    if not await write_end(
        session,
        execution.id,
        status,
        *conditions,
        parent_id=execution.parent_id,
        output=output,
        error=error,
        is_stopped=is_stopped,
        is_filtered=is_filtered,
    ):
        raise LeaseLost


async def lost_leases(session: AsyncSession, keys: Collection[LeaseKey]) -> set[LeaseKey]:
    """The leases that are no longer valid, since their executions ended, were recovered or were deleted."""
    ids = {execution_id for execution_id, _ in keys}
    valid = await session.execute(
        sa.select(ExecutionRecord.id, ExecutionRecord.lease).where(
            ExecutionRecord.id.in_(ids), ExecutionRecord.status == ExecutionStatus.RUNNING, flow_exists()
        )
    )
    return set(keys) - {(row.id, row.lease) for row in valid}


def _has_lease(key: tuple[UUID, UUID | None]) -> tuple[sa.ColumnElement[bool], ...]:
    execution_id, lease = key
    return (
        ExecutionRecord.id == execution_id,
        ExecutionRecord.lease.is_not_distinct_from(lease),
        ExecutionRecord.status == ExecutionStatus.RUNNING,
    )
