"""Checkpoints of many executions in one transaction: a commit costs the same for one and for a hundred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.enums import ExecutionStatus, StepStatus
from bloxserver.api.models.tables import ExecutionRecord
from bloxserver.services.claims import Hold, TakenExecution
from bloxserver.services.endings import end_successes
from bloxserver.services.leases import forget_takeovers, save_steps


@dataclass(frozen=True)
class Checkpoint:
    """How far an execution has come."""

    execution: TakenExecution
    steps: Sequence[dict[str, Any]]
    output: str | None = None
    """Where it ends with these steps, as a success that no other execution waits for."""

    @property
    def got_further(self) -> bool:
        """Whether it came beyond what a worker died with: it may not have been the reason."""
        return self.execution.takeovers > 0 and any(step["status"] is not StepStatus.RUNNING for step in self.steps)


async def save_checkpoints(session: AsyncSession, checkpoints: Sequence[Checkpoint]) -> set[Hold]:
    """Keep checkpoints, one for each hold; returns the holds that were lost."""
    held = await _hold(session, checkpoints)
    kept = [checkpoint for checkpoint in checkpoints if checkpoint.execution.hold in held]
    await save_steps(session, [step for checkpoint in kept for step in checkpoint.steps])
    ended = {checkpoint.execution.id: checkpoint.output for checkpoint in kept if checkpoint.output is not None}
    if ended:
        triggers = [checkpoint.execution.trigger_type for checkpoint in kept if checkpoint.output is not None]
        await end_successes(session, ended, triggers)
    progressed = [checkpoint.execution.id for checkpoint in kept if checkpoint.got_further]
    if progressed:
        await forget_takeovers(session, progressed)
    return {checkpoint.execution.hold for checkpoint in checkpoints} - held


async def _hold(session: AsyncSession, checkpoints: Sequence[Checkpoint]) -> set[Hold]:
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
