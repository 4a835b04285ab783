"""Deletes flows and triggers: small ones in the request. Large ones are hidden at once and deleted in batches later.

The background task that finishes large deletions is `bloxserver.engine.background.deletions`.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import AuditAction, ExecutionStatus
from bloxserver.models.execution_changes import announce_any_change
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStepRecord,
    ExecutionTotalsRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVersionRecord,
    KeyValueRecord,
    SigningSecretRecord,
    TriggerRecord,
    WebhookDeliveryRecord,
)
from bloxserver.models.types import size_of
from bloxserver.queries.flows import modes_of, require_flow
from bloxserver.queries.requesters import owned_by
from bloxserver.queries.triggers import read_trigger
from bloxserver.services import audit
from bloxserver.services.transitions import lock_executions

MAX_EXECUTIONS = 500
MAX_ROWS = 5_000
MAX_BYTES = 32 * 1024 * 1024
"""Limits of a deletion that the request completes: executions; executions, steps and versions; their payloads."""
FLOW_DELETED = "The flow was deleted"


async def delete_flow(session: AsyncSession, user_id: UUID, flow_id: UUID) -> None:
    """Delete the flow with all rows that belong to it, without loading the rows. Raises `NotFound`.

    A large flow is marked as deleted, which has the same effect on every read, and its rows are deleted in the
    background.
    """
    name = await require_flow(session, user_id, flow_id, lock=True)
    await audit.record(session, AuditAction.FLOW_DELETED, user_id, flow_id, flow_id=flow_id, before={"name": name})
    if await _is_small(session, flow_id):
        await _wake_callers(session, flow_id)
        await _delete_rows(session, flow_id)
    else:
        await _mark_flow(session, flow_id)
        wake_engine_after_commit(session, WakeReason.DELETION)
    announce_any_change(session)
    wake_engine_after_commit(session, WakeReason.CANCELLATION)
    wake_engine_after_commit(session, WakeReason.EXECUTION)


async def _is_small(session: AsyncSession, flow_id: UUID) -> bool:
    """Whether the request can delete the flow's rows. Reads no more rows than the request may delete."""
    totals = sa.select(sa.func.sum(ExecutionTotalsRecord.executions)).where(ExecutionTotalsRecord.flow_id == flow_id)
    if (await session.scalar(totals) or 0) > MAX_EXECUTIONS:
        return False
    execution, step, version = ExecutionRecord, ExecutionStepRecord, FlowVersionRecord
    executions = sa.select(execution.id).where(execution.flow_id == flow_id)
    parts = [
        sa.select(size_of(execution.input_payload, execution.output_payload)).where(execution.flow_id == flow_id),
        sa.select(size_of(step.input_payload, step.output_payload, step.state))
        .where(step.execution_id.in_(executions))
        .limit(MAX_ROWS + 1),
        sa.select(size_of(version.organism_yaml)).where(version.flow_id == flow_id).limit(MAX_ROWS + 1),
    ]
    rows = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
    counted = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(rows.c.size), 0))
    total, size = (await session.execute(counted)).one()
    return bool(total <= MAX_ROWS and size <= MAX_BYTES)


async def _wake_callers(session: AsyncSession, flow_id: UUID) -> None:
    """Resume executions of other flows that called executions of this flow. Their calls fail."""
    running = ExecutionRecord.status == ExecutionStatus.RUNNING
    own = ExecutionRecord.flow_id == flow_id, running
    callers = sa.select(ExecutionRecord.parent_id).where(*own, ExecutionRecord.parent_id.is_not(None))
    # All rows are locked before the first is changed: a worker may hold one execution while it locks another.
    await lock_executions(session, ExecutionRecord.id.in_(sa.select(ExecutionRecord.id).where(*own).union(callers)))
    await session.execute(
        sa.update(ExecutionRecord)
        .where(ExecutionRecord.id.in_(callers), running, ExecutionRecord.lease.is_(None))
        .values(resume_at=now())
        .execution_options(synchronize_session=False)
    )


async def _delete_rows(session: AsyncSession, flow_id: UUID) -> None:
    executions = sa.select(ExecutionRecord.id).where(ExecutionRecord.flow_id == flow_id)
    await _delete(session, ExecutionStepRecord, ExecutionStepRecord.execution_id.in_(executions))
    await _delete(session, FailureNotificationRecord, FailureNotificationRecord.execution_id.in_(executions))
    await _delete(session, ExecutionRecord, ExecutionRecord.flow_id == flow_id)
    triggers = sa.select(TriggerRecord.id).where(TriggerRecord.flow_id == flow_id)
    for table in (FailureNotificationRecord, SigningSecretRecord, WebhookDeliveryRecord):
        await _delete(session, table, table.trigger_id.in_(triggers))
    await _delete(session, TriggerRecord, TriggerRecord.flow_id == flow_id)
    await _delete(session, FailureNotificationRecord, FailureNotificationRecord.flow_id == flow_id)
    await _delete(session, KeyValueRecord, KeyValueRecord.flow_id == flow_id)
    await _delete(session, FlowVersionRecord, FlowVersionRecord.flow_id == flow_id)
    await _delete(session, FlowRecord, FlowRecord.id == flow_id)


async def _delete(session: AsyncSession, table: type[Any], condition: sa.ColumnElement[bool]) -> None:
    await session.execute(sa.delete(table).where(condition))


async def _mark_flow(session: AsyncSession, flow_id: UUID) -> None:
    """Hide the flow, free the tokens of its webhooks, and revoke the leases of its running executions."""
    moment = now()
    await session.execute(sa.update(FlowRecord).where(FlowRecord.id == flow_id).values(deleted_at=moment))
    await session.execute(
        sa.update(TriggerRecord)
        .where(TriggerRecord.flow_id == flow_id)
        .values(deleted_at=moment, webhook_token=None, previous_token=None, own_webhook_url=None)
    )
    claimed = (
        ExecutionRecord.flow_id == flow_id,
        ExecutionRecord.status == ExecutionStatus.RUNNING,
        ExecutionRecord.lease.is_not(None),
        ExecutionRecord.mode.in_(modes_of(flow_id)),  # for the index
    )
    await lock_executions(session, *claimed)
    await session.execute(
        sa.update(ExecutionRecord)
        .where(*claimed)
        .values(lease=None, worker_id=None)
        .execution_options(synchronize_session=False)
    )


async def mark_flows_of(session: AsyncSession, user_id: UUID) -> None:
    """Mark all flows of the user as deleted, as `_mark_flow` does with one. Workers delete their rows."""
    own = sa.select(FlowRecord.id).where(FlowRecord.user_id == user_id)
    marked = sa.select(own.order_by(FlowRecord.id).with_for_update().subquery())
    flow_ids = (await session.scalars(marked)).all()
    if not flow_ids:
        return
    moment = now()
    await _update(session, FlowRecord, owned_by(user_id), deleted_at=moment)
    tokens: dict[str, Any] = {"webhook_token": None, "previous_token": None, "own_webhook_url": None}
    await _update(session, TriggerRecord, TriggerRecord.flow_id.in_(own), deleted_at=moment, **tokens)
    await _delete(session, SigningSecretRecord, SigningSecretRecord.trigger_id.in_(_triggers_of(own)))
    claimed = (
        ExecutionRecord.flow_id.in_(own),
        ExecutionRecord.status == ExecutionStatus.RUNNING,
        ExecutionRecord.lease.is_not(None),
    )
    await lock_executions(session, *claimed)
    await _update(session, ExecutionRecord, *claimed, lease=None, worker_id=None)
    announce_any_change(session)
    for reason in (WakeReason.DELETION, WakeReason.CANCELLATION, WakeReason.EXECUTION):
        wake_engine_after_commit(session, reason)


def _triggers_of(flows: sa.Select[UUID]) -> sa.Select[UUID]:
    return sa.select(TriggerRecord.id).where(TriggerRecord.flow_id.in_(flows))


async def _update(session: AsyncSession, table: type[Any], *conditions: sa.ColumnElement[bool], **values: Any) -> None:
    changed = sa.update(table).where(*conditions).values(**values)
    await session.execute(changed.execution_options(synchronize_session=False))


async def delete_trigger(session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID) -> None:
    """Delete the trigger and keep its executions, whose `trigger_id` becomes null; raises `NotFound`.

    A trigger with many executions is marked as deleted, which has the same effect on every read, and the executions
    are changed in the background.
    """
    trigger = await read_trigger(session, user_id, flow_id, trigger_id)
    before = {"type": trigger.type, "name": trigger.name}
    if await _remove_trigger(session, flow_id, trigger_id):
        action = AuditAction.TRIGGER_DELETED
        await audit.record(session, action, user_id, trigger_id, flow_id=flow_id, before=before)


async def _remove_trigger(session: AsyncSession, flow_id: UUID, trigger_id: UUID) -> bool:
    """Delete or mark the trigger. Returns False if another transaction did."""
    triggered = ExecutionRecord.trigger_id == trigger_id
    # Every transaction locks the flow before its executions.
    await session.execute(
        sa.select(FlowRecord.id).where(FlowRecord.id == flow_id).with_for_update(read=True, key_share=True)
    )
    some = sa.select(ExecutionRecord.id).where(triggered).limit(MAX_EXECUTIONS + 1).subquery()
    if (await session.scalar(sa.select(sa.func.count()).select_from(some)) or 0) > MAX_EXECUTIONS:
        wake_engine_after_commit(session, WakeReason.DELETION)
        marked = await session.execute(
            sa.update(TriggerRecord)
            .where(TriggerRecord.id == trigger_id, TriggerRecord.deleted_at.is_(None))
            .values(deleted_at=now(), webhook_token=None, previous_token=None, own_webhook_url=None)
            .returning(TriggerRecord.id)
        )
        return marked.first() is not None
    await lock_executions(session, triggered)
    await session.execute(sa.update(ExecutionRecord).where(triggered).values(trigger_id=None))
    for table in (FailureNotificationRecord, SigningSecretRecord, WebhookDeliveryRecord):
        await _delete(session, table, table.trigger_id == trigger_id)
    deleted = await session.execute(
        sa.delete(TriggerRecord).where(TriggerRecord.id == trigger_id).returning(TriggerRecord.id)
    )
    return deleted.first() is not None
