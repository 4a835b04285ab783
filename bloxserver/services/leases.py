"""The life of an execution on a worker: taken under a lease, its steps kept, parked or ended.

Every write names the lease: a worker that was frozen and comes back after another took over changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.database import wake_engine_after_commit
from bloxserver.api.models.enums import ExecutionStatus, StepStatus
from bloxserver.api.models.statements import insert_into
from bloxserver.api.models.tables import ExecutionRecord, ExecutionStepRecord, FlowRecord, FlowVersionRecord
from bloxserver.api.models.types import now

ROWS_PER_INSERT = 500
"""Both databases take some 32,000 values in a statement."""


class LeaseLost(Exception):
    """The execution has ended, is gone, or belongs to another worker by now."""


@dataclass(frozen=True)
class TakenExecution:
    """What a worker needs to run an execution."""

    id: UUID
    lease: UUID
    started_at: datetime
    input_payload: str | None
    target: str | None
    organism_yaml: str
    steps: Sequence[ExecutionStepRecord]


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
                ExecutionRecord.started_at,
                ExecutionRecord.input_payload,
                ExecutionRecord.target,
            )
        )
    ).first()
    if taken is None:
        return None
    organism_yaml = await session.scalar(
        sa.select(sa.func.coalesce(FlowVersionRecord.organism_yaml, FlowRecord.organism_yaml))
        .select_from(FlowRecord)
        .outerjoin(FlowVersionRecord, FlowVersionRecord.id == taken.flow_version_id)
        .where(FlowRecord.id == taken.flow_id)
    )
    steps = await session.scalars(
        sa.select(ExecutionStepRecord).where(ExecutionStepRecord.execution_id == execution_id)
    )
    return TakenExecution(
        id=execution_id,
        lease=lease,
        started_at=taken.started_at,
        input_payload=taken.input_payload,
        target=taken.target,
        organism_yaml=organism_yaml or "",
        steps=steps.all(),
    )


async def save_steps(session: AsyncSession, execution: TakenExecution, steps: Sequence[dict[str, Any]]) -> None:
    """Keep finished steps, once each; raises `LeaseLost`."""
    await _hold(session, execution)
    waited = {step.key for step in execution.steps if step.status is StepStatus.WAITING}
    new = [{**step, "execution_id": execution.id} for step in steps if step["key"] not in waited]
    for begin in range(0, len(new), ROWS_PER_INSERT):
        # A commit whose answer was lost may have kept them already.
        rows = new[begin : begin + ROWS_PER_INSERT]
        await session.execute(insert_into(session, ExecutionStepRecord).values(rows).on_conflict_do_nothing())
    for step in steps:
        if step["key"] in waited:
            await session.execute(
                sa.update(ExecutionStepRecord)
                .where(ExecutionStepRecord.execution_id == execution.id, ExecutionStepRecord.key == step["key"])
                .values({name: step[name] for name in ("status", "completed_at", "duration_ms")})
            )


async def _hold(session: AsyncSession, execution: TakenExecution) -> None:
    """Keep the lease from being taken until this transaction ends; raises `LeaseLost`."""
    held = await session.scalar(sa.select(ExecutionRecord.id).where(*_ours(execution)).with_for_update(read=True))
    if held is None:
        raise LeaseLost


async def park(session: AsyncSession, execution: TakenExecution, resume_at: datetime) -> None:
    """Leave the worker until `resume_at`, when the dispatcher hands the execution over anew; raises `LeaseLost`."""
    await _write(
        session,
        execution,
        dispatch_number=ExecutionRecord.dispatch_number + 1,
        dispatched_at=None,
        resume_at=resume_at,
        lease=None,
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
    """The only writer of an execution's end; raises `LeaseLost` where it has ended before."""
    moment = now()
    await _write(
        session,
        execution,
        status=status,
        completed_at=moment,
        duration_ms=max(0, int((moment - execution.started_at).total_seconds() * 1000)),
        output_payload=output,
        error_message=error,
        resume_at=None,
        lease=None,
    )
    wake_engine_after_commit(session)


async def _write(session: AsyncSession, execution: TakenExecution, **values: Any) -> None:
    written = await session.execute(
        sa.update(ExecutionRecord).where(*_ours(execution)).values(**values).returning(ExecutionRecord.id)
    )
    if written.first() is None:
        raise LeaseLost


def _ours(execution: TakenExecution) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        ExecutionRecord.id == execution.id,
        ExecutionRecord.lease == execution.lease,
        ExecutionRecord.status == ExecutionStatus.RUNNING,
    )
