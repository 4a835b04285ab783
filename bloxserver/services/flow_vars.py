"""Sets the variables of flows."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest
from bloxserver.ids import new_id
from bloxserver.models.enums import AuditAction, ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, FlowRecord, FlowVarsRecord
from bloxserver.queries.flows import read_flow
from bloxserver.services import audit
from bloxserver.storable import json_text

MAX_BYTES = 64 * 1024
"""The size of all variables of a flow as JSON."""
KEPT = timedelta(hours=1)
"""How long replaced variables are kept at least: a transaction that accepts an execution may have read them."""


async def set_vars(session: AsyncSession, user_id: UUID, flow_id: UUID, values: dict[str, JsonValue]) -> None:
    """Replace all variables of the user's flow. Executions that were accepted before keep theirs.

    Raises `NotFound`, and `BadRequest` if the variables are too large.
    """
    text = json_text(values)
    if len(text.encode()) > MAX_BYTES:
        raise BadRequest("vars_too_large", f"The variables of a flow must not exceed {MAX_BYTES} bytes as JSON")
    flow = await read_flow(session, user_id, flow_id, lock=True)
    moment, id = now(), new_id()
    await session.execute(
        sa.update(FlowVarsRecord)
        .where(FlowVarsRecord.flow_id == flow_id, FlowVarsRecord.replaced_at.is_(None))
        .values(replaced_at=moment)
    )
    await session.execute(sa.insert(FlowVarsRecord).values(id=id, flow_id=flow_id, values=text, created_at=moment))
    # The definition has not changed, so its ETag does not change.
    await session.execute(
        sa.update(FlowRecord).where(FlowRecord.id == flow_id).values(vars_id=id, updated_at=flow.updated_at)
    )
    await _delete_unused(session, flow_id)
    await audit.record(session, AuditAction.FLOW_VARS_SET, user_id, flow_id, flow_id=flow_id)


async def _delete_unused(session: AsyncSession, flow_id: UUID) -> None:
    used = sa.exists().where(
        ExecutionRecord.flow_id == flow_id,
        ExecutionRecord.status == ExecutionStatus.RUNNING,
        ExecutionRecord.vars_id == FlowVarsRecord.id,
    )
    await session.execute(
        sa.delete(FlowVarsRecord)
        .where(FlowVarsRecord.flow_id == flow_id, FlowVarsRecord.replaced_at < now() - KEPT, ~used)
        .execution_options(synchronize_session=False)
    )
