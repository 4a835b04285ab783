"""Ends executions. Workers, users and stopping flows all end executions through this module alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import aliased
from sqlalchemy.sql import expression

from bloxserver.clock import now
from bloxserver.errors import BadRequest
from bloxserver.models.database import WakeReason, after_commit, wake_engine_after_commit
from bloxserver.models.enums import AuditAction, ExecutionStatus, StepStatus, TriggerType
from bloxserver.models.execution_changes import announce_changes
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from bloxserver.observability import metrics
from bloxserver.queries.executions import read_execution
from bloxserver.queries.flows import modes_of
from bloxserver.services import audit

OPEN_STEPS = (StepStatus.RUNNING, StepStatus.WAITING, StepStatus.RETRYING, StepStatus.CALLING)
BATCH = 500
"""Executions ended in one statement. Both databases accept about 32,000 values in a statement."""
CANCELLED_BY_USER = "Cancelled by the user"
CALLER_ENDED = "The execution that called this one has ended"


async def end_execution(
    session: AsyncSession,
    execution_id: UUID,
    status: ExecutionStatus,
    *conditions: sa.ColumnElement[bool],
    parent_id: UUID | None,
    output: str | None = None,
    error: str | None = None,
    is_stopped: bool = False,
    is_filtered: bool = False,
) -> bool:
    """End one execution. Returns False if it was deleted, has ended, or does not meet the conditions.

    `parent_id` is the execution that called this one. If it is suspended, it resumes. With `is_stopped`, a successful
    execution may have open steps and called executions; they are cancelled. `is_filtered`
    tells whether no condition chose a listener for any of its outputs.
    """
    if parent_id is not None:
        await lock_executions(session, ExecutionRecord.id == parent_id)
    wanted = (ExecutionRecord.id == execution_id, *conditions)
    parent_ids = [parent_id] if parent_id else []
    ended = await _end(
        session,
        wanted,
        status,
        parent_ids,
        output=output,
        error=error,
        is_stopped=is_stopped,
        is_filtered=is_filtered,
    )
    return bool(ended)


def success_of(output: sa.ColumnElement[str], filtered: sa.ColumnElement[bool]) -> sa.Update:
    """Return the UPDATE that ends executions as successes at the parameter `moment`. Its conditions are added to it.

    The calling code has locked the executions, has checked that they are running and have no caller, and calls
    `note_successes`.
    """
    row = ExecutionRecord.metadata.tables[ExecutionRecord.__tablename__]
    moment = sa.bindparam("moment", type_=row.c.completed_at.type)
    return sa.update(row).values(
        status=ExecutionStatus.SUCCESS,
        completed_at=moment,
        duration_ms=elapsed_ms(row.c.started_at, moment),
        output_payload=output,
        filtered=filtered,
        resume_at=None,
        lease=None,
        worker_id=None,
    )


def note_successes(session: AsyncSession, executions: Mapping[UUID, TriggerType]) -> None:
    """After the commit, count these executions and tell those who wait for them. The values are what started them."""
    _count(session, ExecutionStatus.SUCCESS, executions.values())
    announce_changes(session, executions)
    wake_engine_after_commit(session, WakeReason.EXECUTION)


async def cancel_executions(session: AsyncSession, execution_ids: Sequence[UUID], reason: str) -> int:
    """Cancel the given executions, at most `BATCH`, that are still running. Returns their number."""
    parents = await session.scalars(
        sa.select(ExecutionRecord.parent_id)
        .where(ExecutionRecord.id.in_(execution_ids), ExecutionRecord.parent_id.is_not(None))
        .distinct()
    )
    wanted = (ExecutionRecord.id.in_(execution_ids),)
    parent_ids = [parent_id for parent_id in parents if parent_id is not None]
    await lock_executions(session, ExecutionRecord.id.in_([*parent_ids, *execution_ids]))
    return len(await _end(session, wanted, ExecutionStatus.CANCELLED, parent_ids, error=reason))


async def cancel_execution(session: AsyncSession, user_id: UUID, flow_id: UUID, execution_id: UUID) -> ExecutionRecord:
    """Cancel a running execution. An execution that is already cancelled is returned unchanged.

    Raises `NotFound`, and `BadRequest` (`execution_ended`) if it ended with another status.
    """
    execution = await read_execution(session, user_id, flow_id, execution_id)
    if execution.status is ExecutionStatus.RUNNING:
        await _cancel(session, user_id, execution)
        execution = await read_execution(session, user_id, flow_id, execution_id)
    if execution.status is not ExecutionStatus.CANCELLED:
        raise BadRequest("execution_ended", f"Cannot cancel execution in {execution.status.value} state")
    return execution


async def _cancel(session: AsyncSession, user_id: UUID, execution: ExecutionRecord) -> None:
    status = ExecutionStatus.CANCELLED
    if await end_execution(session, execution.id, status, parent_id=execution.parent_id, error=CANCELLED_BY_USER):
        await audit.record(
            session,
            AuditAction.EXECUTION_CANCELLED,
            user_id,
            execution.id,
            flow_id=execution.flow_id,
            before={"status": execution.status},
            after={"status": status},
        )


async def cancel_running(session: AsyncSession, flow_id: UUID, reason: str) -> int:
    """Cancel a batch of the flow's running executions, callers first. Returns their number; 0 if none is left."""
    running = await session.scalars(
        sa.select(ExecutionRecord.id)
        .where(
            ExecutionRecord.flow_id == flow_id,
            ExecutionRecord.mode.in_(modes_of(flow_id)),
            ExecutionRecord.status == ExecutionStatus.RUNNING,
        )
        .order_by(ExecutionRecord.depth, ExecutionRecord.id)
        .limit(BATCH)
    )
    return await cancel_executions(session, running.all(), reason)


async def lock_executions(session: AsyncSession, *wanted: sa.ColumnElement[bool]) -> None:
    """Lock these executions until the transaction ends."""
    locked = sa.select(ExecutionRecord.id).where(*wanted).order_by(ExecutionRecord.id).with_for_update().subquery()
    # Only the count is fetched: a long backlog has many ids.
    await session.execute(sa.select(sa.func.count()).select_from(locked))


async def _end(
    session: AsyncSession,
    wanted: Sequence[sa.ColumnElement[bool]],
    status: ExecutionStatus,
    parent_ids: Sequence[UUID],
    *,
    output: str | None = None,
    error: str | None = None,
    is_stopped: bool = False,
    is_filtered: bool = False,
) -> list[UUID]:
    """End the wanted executions that are running, with their steps and called executions. Returns their ids.

    The calling code has locked the parents. A parent that suspends concurrently either commits first, and is resumed
    here, or commits later, and then reads the result.
    """
    moment = now()
    rows = await _update(
        session,
        *wanted,
        status=status,
        completed_at=moment,
        duration_ms=elapsed_ms(ExecutionRecord.started_at, _instant(moment)),
        output_payload=output,
        filtered=is_filtered,
        error_message=error,
        resume_at=None,
        lease=None,
        worker_id=None,
    )
    if not rows:
        return []
    ended = [row.id for row in rows]
    _count(session, status, [row.trigger_type for row in rows])
    if status is not ExecutionStatus.SUCCESS or is_stopped:
        await _close_steps(session, ended)
        await _cancel_callees(session, ended)
    if parent_ids:
        suspended = ExecutionRecord.id.in_(parent_ids), ExecutionRecord.lease.is_(None)
        await _update(session, *suspended, resume_at=moment)
    announce_changes(session, ended)
    wake_engine_after_commit(session, WakeReason.EXECUTION)
    if status is ExecutionStatus.CANCELLED:
        wake_engine_after_commit(session, WakeReason.CANCELLATION)
    return ended


def _count(session: AsyncSession, status: ExecutionStatus, triggers: Iterable[TriggerType]) -> None:
    for trigger in triggers:
        after_commit(session, metrics.EXECUTIONS_ENDED.labels(status.value, trigger.value).inc)


async def _update(session: AsyncSession, *wanted: sa.ColumnElement[bool], **values: Any) -> Sequence[Any]:
    updated = await session.execute(
        sa.update(ExecutionRecord)
        .where(*wanted, ExecutionRecord.status == ExecutionStatus.RUNNING)
        .values(**values)
        .returning(ExecutionRecord.id, ExecutionRecord.trigger_type)
        .execution_options(synchronize_session=False)
    )
    return updated.all()


async def _close_steps(session: AsyncSession, execution_ids: Sequence[UUID]) -> None:
    """Set the open steps of these executions to `cancelled`."""
    moment = now()
    other = aliased(ExecutionStepRecord)
    # Joined: SQLite would evaluate a scalar subquery after each row, and a step that ends now could not be saved later.
    newest = (
        sa.select(other.execution_id, sa.func.max(other.sequence).label("sequence"))
        .where(other.execution_id.in_(execution_ids))
        .group_by(other.execution_id)
        .subquery("newest")
    )
    await session.execute(
        sa.update(ExecutionStepRecord)
        .where(
            ExecutionStepRecord.execution_id == newest.c.execution_id,
            ExecutionStepRecord.execution_id.in_(execution_ids),
            ExecutionStepRecord.status.in_(OPEN_STEPS),
        )
        .values(
            status=StepStatus.CANCELLED,
            sequence=newest.c.sequence + 1,
            completed_at=moment,
            duration_ms=elapsed_ms(ExecutionStepRecord.started_at, _instant(moment)),
        )
        .execution_options(synchronize_session=False)
    )


async def _cancel_callees(session: AsyncSession, execution_ids: Sequence[UUID]) -> None:
    called = await session.scalars(
        sa.select(ExecutionRecord.id)
        .where(ExecutionRecord.parent_id.in_(execution_ids), ExecutionRecord.status == ExecutionStatus.RUNNING)
        .order_by(ExecutionRecord.id)
        .with_for_update()
    )
    callees = called.all()
    for begin in range(0, len(callees), BATCH):
        wanted = (ExecutionRecord.id.in_(callees[begin : begin + BATCH]),)
        await _end(session, wanted, ExecutionStatus.CANCELLED, [], error=CALLER_ENDED)


def _instant(moment: Any) -> sa.ColumnElement[Any]:
    return sa.literal(moment, ExecutionRecord.__table__.c.started_at.type)


class elapsed_ms(expression.FunctionElement[int]):  # noqa: N801
    """Whole milliseconds from one instant to another; 0 if the second is earlier."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(elapsed_ms, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    start, end = (compiler.process(clause, **options) for clause in element.clauses)
    return f"CAST(greatest(0, floor(extract(epoch FROM ({end} - {start})) * 1000)) AS BIGINT)"


@compiles(elapsed_ms, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    # strftime rounds fractions to the nearest second, so the fraction is cut off before and added after.
    start, end = (
        f"(strftime('%s', substr({text}, 1, 19)) * 1000000 + substr({text}, 21, 6))"
        for text in (compiler.process(clause, **options) for clause in element.clauses)
    )
    return f"max(0, ({end} - {start}) / 1000)"
