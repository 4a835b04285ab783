"""The life of an execution on a worker: taken under a lease, its steps kept, parked or ended.

Every write names the lease: a worker that was frozen and comes back after another took over changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.database import wake_engine_after_commit
from bloxserver.api.models.enums import ExecutionStatus, StepStatus
from bloxserver.api.models.tables import (
    ExecutionRecord,
    ExecutionStepRecord,
    FlowRecord,
    FlowVersionRecord,
    UserRecord,
)
from bloxserver.api.models.types import now
from bloxserver.queries.usage import Period, period_at
from bloxserver.services.calls import CalledResult, called_results
from bloxserver.services.endings import end_execution as write_end
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


@dataclass(frozen=True)
class TakenExecution:
    """What a worker needs to run an execution."""

    id: UUID
    lease: UUID
    flow_id: UUID
    user_id: UUID
    period: Period
    """The owner's billing period."""
    parent_id: UUID | None
    depth: int
    input_payload: str | None
    target: str | None
    organism_yaml: str
    worked_ms: int
    """Time that workers have spent on it before."""
    input_tokens: int
    output_tokens: int
    steps: Sequence[ExecutionStepRecord]
    called: Mapping[UUID, CalledResult]
    """The executions that its steps called."""
    taken_at: float = field(default_factory=time.monotonic)

    def worked_until_now_ms(self) -> int:
        return self.worked_ms + int((time.monotonic() - self.taken_at) * 1000)


async def take_lease(session: AsyncSession, execution_id: UUID, number: int, lease: UUID) -> TakenExecution | None:
    """Take the execution, and with it the right to write, from whoever had it; None where there is nothing to do."""
    taken = (
        await session.execute(
            sa.update(ExecutionRecord)
            .where(
                ExecutionRecord.id == execution_id,
                ExecutionRecord.status == ExecutionStatus.RUNNING,
                ExecutionRecord.dispatch_number == number,
            )
            .values(lease=lease, picked_up_at=sa.func.coalesce(ExecutionRecord.picked_up_at, now()))
            .returning(
                ExecutionRecord.flow_id,
                ExecutionRecord.flow_version_id,
                ExecutionRecord.input_payload,
                ExecutionRecord.target,
                ExecutionRecord.parent_id,
                ExecutionRecord.depth,
                ExecutionRecord.worked_ms,
                ExecutionRecord.input_tokens,
                ExecutionRecord.output_tokens,
            )
        )
    ).first()
    if taken is None:
        return None
    flow = (
        await session.execute(
            sa.select(
                sa.func.coalesce(FlowVersionRecord.organism_yaml, FlowRecord.organism_yaml).label("organism_yaml"),
                FlowRecord.user_id,
                UserRecord.current_period_start,
                UserRecord.current_period_end,
            )
            .select_from(FlowRecord)
            .outerjoin(FlowVersionRecord, FlowVersionRecord.id == taken.flow_version_id)
            .outerjoin(UserRecord, UserRecord.id == FlowRecord.user_id)
            .where(FlowRecord.id == taken.flow_id)
        )
    ).first()
    if flow is None:
        return None
    steps = await session.scalars(
        sa.select(ExecutionStepRecord).where(ExecutionStepRecord.execution_id == execution_id)
    )
    kept = steps.all()
    calls = any(step.status is StepStatus.CALLING for step in kept)
    return TakenExecution(
        id=execution_id,
        lease=lease,
        flow_id=taken.flow_id,
        user_id=flow.user_id,
        period=period_at(now(), flow.current_period_start, flow.current_period_end),
        parent_id=taken.parent_id,
        depth=taken.depth,
        input_payload=taken.input_payload,
        target=taken.target,
        organism_yaml=flow.organism_yaml,
        worked_ms=taken.worked_ms,
        input_tokens=taken.input_tokens,
        output_tokens=taken.output_tokens,
        steps=kept,
        called=await called_results(session, execution_id) if calls else {},
    )


async def hold(session: AsyncSession, execution: TakenExecution, *, to_write: bool) -> None:
    """Keep the lease from being taken until this transaction ends; raises `LeaseLost`.

    `to_write` says that the execution's row will be written.
    """
    ours = sa.select(ExecutionRecord.id).where(*_ours(execution))
    held = await session.scalar(ours.with_for_update(read=not to_write))
    if held is None:
        raise LeaseLost


async def save_steps(session: AsyncSession, execution: TakenExecution, steps: Sequence[dict[str, Any]]) -> None:
    """Keep how far steps have come. The caller holds the lease, or has written the execution in this transaction."""
    if steps:
        # One that is there already goes on, or is the same: a commit whose answer was lost may have kept it.
        rows = [{**step, "execution_id": execution.id} for step in steps]
        await session.execute(_upsert_of_steps(session.get_bind().dialect.name), rows)


@lru_cache
def _upsert_of_steps(dialect: str) -> sa.Executable:
    """Made once: building it takes longer than running it."""
    table = ExecutionStepRecord.__table__
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    new = statement.excluded
    changes: dict[str, Any] = {name: new[name] for name in CHANGING}
    changes["input_payload"] = sa.func.coalesce(new.input_payload, table.c.input_payload)
    upsert: sa.Executable = statement.on_conflict_do_update(index_elements=["execution_id", "key"], set_=changes)
    return upsert


async def note_tokens(session: AsyncSession, execution: TakenExecution, total: tuple[int, int]) -> None:
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


async def park(
    session: AsyncSession, execution: TakenExecution, resume_at: datetime, called: Sequence[UUID] = ()
) -> None:
    """Leave the worker until `resume_at`, when the dispatcher hands the execution over anew; raises `LeaseLost`.

    `called` are the executions that it waits for: the end of one brings it back at once.
    """
    values = {
        "dispatch_number": ExecutionRecord.dispatch_number + 1,
        "dispatched_at": None,
        "resume_at": resume_at,
        "worked_ms": execution.worked_until_now_ms(),
        "lease": None,
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
    wake_engine_after_commit(session)


async def end_execution(
    session: AsyncSession,
    execution: TakenExecution,
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


async def lost_leases(session: AsyncSession, leases: Mapping[UUID, UUID]) -> set[UUID]:
    """Of these executions, each with the lease that a worker has on it, those that it must not go on with."""
    held = await session.execute(
        sa.select(ExecutionRecord.id, ExecutionRecord.lease).where(
            ExecutionRecord.id.in_(leases), ExecutionRecord.status == ExecutionStatus.RUNNING
        )
    )
    ours = {row.id for row in held if row.lease == leases[row.id]}
    return set(leases) - ours


def _ours(execution: TakenExecution) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        ExecutionRecord.id == execution.id,
        ExecutionRecord.lease == execution.lease,
        ExecutionRecord.status == ExecutionStatus.RUNNING,
    )
