"""Creates rows of steps for tests."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord


async def create_step(
    session: AsyncSession,
    execution: ExecutionRecord,
    listener: str = "a",
    *,
    parent: ExecutionStepRecord | None = None,
    call: str | None = None,
    **values: Any,
) -> ExecutionStepRecord:
    """Create a step that handled the output of `parent` or, with `call`, a tool call of the agent's step `parent`."""
    parent_id = parent.id if parent else None
    key = f"{parent_id or ''}:{listener}" + ("" if call is None else f":{call}")
    step = ExecutionStepRecord(
        **{"execution_id": execution.id, "key": key, "listener": listener, "parent_id": parent_id} | values
    )
    session.add(step)
    await session.commit()
    return step
