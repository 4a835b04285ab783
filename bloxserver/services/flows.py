from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.database import wake_engine_after_commit
from bloxserver.api.models.default_organism import DEFAULT_ORGANISM
from bloxserver.api.models.enums import FlowStatus
from bloxserver.api.models.tables import (
    ExecutionRecord,
    ExecutionStepRecord,
    FlowRecord,
    FlowVersionRecord,
    TriggerRecord,
    UserRecord,
)
from bloxserver.api.models.types import now
from bloxserver.errors import BadRequest, Forbidden
from bloxserver.plans import plan_of
from bloxserver.queries.flows import count_flows, read_flow, require_flow

MOVES = {
    FlowStatus.STARTING: {FlowStatus.STOPPED, FlowStatus.ERROR},
    FlowStatus.RUNNING: {FlowStatus.STARTING},
    FlowStatus.ERROR: {FlowStatus.STARTING, FlowStatus.RUNNING},
    FlowStatus.STOPPING: {FlowStatus.RUNNING, FlowStatus.STARTING, FlowStatus.ERROR},
    FlowStatus.STOPPED: {FlowStatus.STOPPING},
}
"""For each status, those from which it may be entered."""


async def create_flow(
    session: AsyncSession, user_id: UUID, tier: str, name: str, description: str | None, organism_yaml: str | None
) -> FlowRecord:
    """A new, stopped flow; raises `Forbidden` at the limit of the tier, exact however many are created at once."""
    limit = plan_of(tier).flows
    # Creations of one user take turns at his row (SQLite has one writer anyway), so that the count holds.
    await session.execute(sa.select(UserRecord.id).where(UserRecord.id == user_id).with_for_update(key_share=True))
    if await count_flows(session, user_id) >= limit:
        raise Forbidden(
            "flow_limit_reached",
            f"Flow limit reached ({limit}). Upgrade to create more flows.",
            details={"limit": limit},
        )
    flow = FlowRecord(
        user_id=user_id, name=name, description=description, organism_yaml=organism_yaml or DEFAULT_ORGANISM
    )
    session.add(flow)
    await session.flush()
    return flow


async def update_flow(session: AsyncSession, user_id: UUID, flow_id: UUID, changes: dict[str, Any]) -> FlowRecord:
    """Change what is named in `changes`; raises `NotFound`."""
    flow = await read_flow(session, user_id, flow_id)
    for name, value in changes.items():
        setattr(flow, name, value)
    if changes:
        flow.updated_at = now()
        await session.flush()
    return flow


async def delete_flow(session: AsyncSession, user_id: UUID, flow_id: UUID) -> None:
    """Delete the flow and all that hangs on it, by statements alone; raises `NotFound`."""
    await require_flow(session, user_id, flow_id)
    executions = sa.select(ExecutionRecord.id).where(ExecutionRecord.flow_id == flow_id)
    await _delete(session, ExecutionStepRecord, ExecutionStepRecord.execution_id.in_(executions))
    await _delete(session, ExecutionRecord, ExecutionRecord.flow_id == flow_id)
    await _delete(session, TriggerRecord, TriggerRecord.flow_id == flow_id)
    await _delete(session, FlowVersionRecord, FlowVersionRecord.flow_id == flow_id)
    await _delete(session, FlowRecord, FlowRecord.id == flow_id)


async def _delete(session: AsyncSession, table: type[Any], condition: sa.ColumnElement[bool]) -> None:
    await session.execute(sa.delete(table).where(condition))


async def start_flow(session: AsyncSession, user_id: UUID, flow_id: UUID) -> FlowRecord:
    """Ask for a start: the engine validates the organism and writes `running`, or `error` with the reason."""
    return await _request(session, user_id, flow_id, FlowStatus.STARTING, "start")


async def stop_flow(session: AsyncSession, user_id: UUID, flow_id: UUID) -> FlowRecord:
    """Ask for a stop: the engine writes `stopped`."""
    return await _request(session, user_id, flow_id, FlowStatus.STOPPING, "stop")


async def _request(session: AsyncSession, user_id: UUID, flow_id: UUID, to: FlowStatus, verb: str) -> FlowRecord:
    flow = await read_flow(session, user_id, flow_id)
    if not await transition_flow(session, flow_id, to):
        raise BadRequest("flow_wrong_state", f"Cannot {verb} flow in {flow.status.value} state")
    wake_engine_after_commit(session)
    await session.refresh(flow)
    return flow


async def transition_flow(
    session: AsyncSession, flow_id: UUID, to: FlowStatus, *conditions: sa.ColumnElement[bool], **values: Any
) -> bool:
    """The only writer of a flow's status.

    False where the flow is gone, is no longer in a status that leads to `to`, or does not meet the conditions.
    """
    if to in (FlowStatus.STARTING, FlowStatus.RUNNING):
        values["error_message"] = None
    moved = await session.execute(
        sa.update(FlowRecord)
        .where(FlowRecord.id == flow_id, FlowRecord.status.in_(MOVES[to]), *conditions)
        .values(status=to, updated_at=now(), **values)
        .returning(FlowRecord.id)
    )
    return moved.first() is not None
