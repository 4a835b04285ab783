"""Reads the times of executions from the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from benchmarks.installation import Installation
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord


class Timing(NamedTuple):
    accepted_at: datetime
    picked_up_at: datetime | None
    first_step_at: datetime | None
    completed_at: datetime | None


async def read_timings(installation: Installation, flow_ids: Sequence[UUID] = ()) -> list[Timing]:
    """Return the times of all executions, or those of some flows. Raises `RuntimeError` if an execution failed."""
    first_step = (
        sa.select(ExecutionStepRecord.started_at)
        .where(ExecutionStepRecord.execution_id == ExecutionRecord.id)
        .order_by(ExecutionStepRecord.started_at)
        .limit(1)
        .scalar_subquery()
    )
    statement = sa.select(
        ExecutionRecord.started_at,
        ExecutionRecord.picked_up_at,
        first_step,
        ExecutionRecord.completed_at,
        ExecutionRecord.status,
        ExecutionRecord.error_message,
    )
    if flow_ids:
        statement = statement.where(ExecutionRecord.flow_id.in_(flow_ids))
    async with installation.database.transaction(read_only=True) as session:
        rows = (await session.execute(statement)).all()
    ends = Counter(row.status for row in rows)
    if set(ends) - {ExecutionStatus.SUCCESS, ExecutionStatus.RUNNING}:
        reason = next((row.error_message for row in rows if row.error_message), None)
        raise RuntimeError(f"executions failed: {dict(ends)}; one of them: {reason}")
    return [Timing(*row[:4]) for row in rows]


def claim_latencies_ms(timings: Sequence[Timing]) -> list[float]:
    """Return the milliseconds from acceptance to claim."""
    return [_ms(timing.accepted_at, timing.picked_up_at) for timing in timings if timing.picked_up_at is not None]


def first_step_latencies_ms(timings: Sequence[Timing]) -> list[float]:
    """Return the milliseconds from acceptance to the start of the first step."""
    return [_ms(timing.accepted_at, timing.first_step_at) for timing in timings if timing.first_step_at is not None]


def total_seconds(timings: Sequence[Timing]) -> float:
    """Return the seconds from the first claim to the last end."""
    started = min(timing.picked_up_at for timing in timings if timing.picked_up_at is not None)
    return _ms(started, max(timing.completed_at for timing in timings if timing.completed_at is not None)) / 1000


def steady_rate(timings: Sequence[Timing]) -> float:
    """Return the ended executions per second between the 10th and the 90th percentile, without ramp-up and tail."""
    ends = sorted(timing.completed_at for timing in timings if timing.completed_at is not None)
    first, last = len(ends) // 10, len(ends) * 9 // 10
    return (last - first) / max(0.001, _ms(ends[first], ends[last]) / 1000)


def _ms(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() * 1000
