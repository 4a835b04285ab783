"""Checkpoints of many executions in one transaction: a commit costs the same for one and for a hundred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.queue.claims import ClaimedExecution, LeaseKey
from bloxserver.engine.queue.leases import reset_crash_count, save_steps
from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.models.tables import ExecutionRecord
from bloxserver.services.transitions import end_successes


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
    held = await _hold(session, checkpoints)
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


async def _hold(session: AsyncSession, checkpoints: Sequence[Checkpoint]) -> set[LeaseKey]:
    """The holds on these executions; they last until this transaction ends."""
    ids = {checkpoint.execution.id for checkpoint in checkpoints}
    rows = await session.execute(
        sa.select(ExecutionRecord.id, ExecutionRecord.lease)
        .where(ExecutionRecord.id.in_(ids), ExecutionRecord.status == ExecutionStatus.RUNNING)
        # All that lock several executions lock them in this order.
        .order_by(ExecutionRecord.id)
        .with_for_update(key_share=True)
    )
    return {(row.id, row.lease) for row in rows}
