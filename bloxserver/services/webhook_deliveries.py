"""Deliveries: the last calls of each webhook, accepted and rejected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, BloxError, Conflict, NotFound
from bloxserver.ids import new_id
from bloxserver.models.enums import AuditAction, FlowStatus, TriggerType
from bloxserver.models.tables import ExecutionRecord, FlowRecord, WebhookDeliveryRecord
from bloxserver.models.transient_errors import describe_error
from bloxserver.plans import Plan
from bloxserver.queries.requesters import owned_by
from bloxserver.queries.triggers import find_webhook_id, read_trigger
from bloxserver.queries.usage import Period, stored_bytes_of
from bloxserver.queries.webhook_deliveries import MAX_DELIVERIES, find_delivered_input
from bloxserver.raw_json import plain_object
from bloxserver.services import audit
from bloxserver.services.executions import Input, accept, target_of
from bloxserver.services.usage import count_run, require_storage
from bloxserver.services.webhook_signatures import InvalidSignature

log = structlog.stdlib.get_logger("bloxserver.request")

MAX_MESSAGE = 500
REPEATED = 200, "repeated", "An earlier call with the same key started the execution"


class Rejection(NamedTuple):
    """A call that was rejected."""

    trigger_id: UUID
    error: BloxError
    size: int
    """The bytes of the body."""


async def record_rejections(session: AsyncSession, rejections: Sequence[Rejection]) -> None:
    """Record calls that were rejected."""
    rows = [_row(trigger_id, error.status, error.code, _reason(error), size) for trigger_id, error, size in rejections]
    await _record(session, rows)


@contextmanager
def not_required() -> Iterator[None]:
    """Log an error of recording, and continue: the sender must learn why the call was rejected."""
    try:
        yield
    except Exception as error:
        log.warning("rejected webhook was not recorded", reason=describe_error(error))


async def record_rejection(session: AsyncSession, token: str, error: BloxError, size: int) -> None:
    """Record a rejected call of the webhook with this token, if there is one. A failure is logged."""
    with not_required():
        async with session.begin_nested():
            trigger_id = None if isinstance(error, NotFound) else await find_webhook_id(session, token)
            if trigger_id is not None:
                await record_rejections(session, [Rejection(trigger_id, error, size)])


async def record_repetition(session: AsyncSession, trigger_id: UUID, execution_id: UUID, size: int) -> None:
    """Record a call that repeats the one that started this execution."""
    await _record(session, [_row(trigger_id, *REPEATED, size) | {"execution_id": execution_id}])


async def redeliver(
    session: AsyncSession,
    user_id: UUID,
    plan: Plan,
    period: Period,
    flow_id: UUID,
    trigger_id: UUID,
    delivery_id: UUID,
) -> ExecutionRecord:
    """Accept a run with the input of an accepted delivery, as if the sender had called again.

    Raises `NotFound`, `Conflict` for a rejected delivery or a disabled webhook, `BadRequest` if the flow does not run,
    and `Forbidden` at a limit.
    """
    trigger = await read_trigger(session, user_id, flow_id, trigger_id)
    delivered = await find_delivered_input(session, trigger_id, delivery_id)
    wanted = sa.select(FlowRecord.status, stored_bytes_of(user_id).label("bytes")).where(
        owned_by(user_id), FlowRecord.id == flow_id
    )
    flow = (await session.execute(wanted)).first()
    if flow is None:
        raise NotFound("Flow")
    if flow.status is not FlowStatus.RUNNING:
        raise BadRequest("flow_not_running", f"Flow must be running to execute (current: {flow.status.value})")
    if not trigger.enabled:
        raise Conflict("trigger_disabled", "Webhook is disabled")
    require_storage(plan, flow.bytes)
    await count_run(session, user_id, plan, period, now())
    execution = await accept(
        session,
        flow_id=flow_id,
        trigger_id=trigger_id,
        trigger_type=TriggerType.WEBHOOK,
        target=target_of(plain_object(trigger.config)),
        given=Input(delivered.input_payload, delivered.input_encoding),
        retry_of=delivered.id,
        trigger_context=delivered.trigger_context,
    )
    after = {"executionId": str(execution.id)}
    await audit.record(session, AuditAction.EXECUTION_REDELIVERED, user_id, delivered.id, flow_id=flow_id, after=after)
    return execution


def _row(trigger_id: UUID, status: int, code: str, message: str, size: int) -> dict[str, Any]:
    return {
        "id": new_id(),
        "trigger_id": trigger_id,
        "received_at": now(),
        "status": status,
        "code": code,
        "message": message[:MAX_MESSAGE],
        "bytes": size,
        "execution_id": None,
    }


def _reason(error: BloxError) -> str:
    return error.reason if isinstance(error, InvalidSignature) else error.message


async def _record(session: AsyncSession, rows: Sequence[dict[str, Any]]) -> None:
    """Insert deliveries, and delete the oldest of the same webhooks."""
    await session.execute(sa.insert(WebhookDeliveryRecord), rows)
    for trigger_id in sorted({row["trigger_id"] for row in rows}):
        ids = sa.select(WebhookDeliveryRecord.id).where(WebhookDeliveryRecord.trigger_id == trigger_id)
        first = ids.order_by(WebhookDeliveryRecord.id.desc()).offset(MAX_DELIVERIES).limit(1).scalar_subquery()
        # Only the surplus is locked, so that a rejected call does not write to the rows that are kept.
        surplus = ids.where(WebhookDeliveryRecord.id <= first).with_for_update(skip_locked=True)
        await session.execute(
            sa.delete(WebhookDeliveryRecord)
            .where(WebhookDeliveryRecord.id.in_(surplus))
            .execution_options(synchronize_session=False)
        )
