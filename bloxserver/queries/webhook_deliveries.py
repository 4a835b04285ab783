from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import Conflict, NotFound
from bloxserver.models.enums import InputEncoding, TriggerType
from bloxserver.models.tables import ExecutionRecord, WebhookDeliveryRecord
from bloxserver.models.types import text_bytes
from bloxserver.queries.triggers import read_trigger

MAX_DELIVERIES = 100
"""The deliveries of a webhook that are listed."""
MAX_PREFIX = 4096
"""Characters of a `data:` URL in which its comma is searched."""
ACCEPTED = 200


class Delivery(NamedTuple):
    """A call of a webhook. An accepted one has the id of its execution."""

    id: UUID
    received_at: datetime
    outcome: str
    """`accepted`, `repeated` or `rejected`."""
    status: int
    code: str | None
    message: str | None
    bytes: int
    """The size of the body."""
    execution_id: UUID | None
    redelivery_of: UUID | None
    """The execution whose input was delivered again by its owner."""


async def read_deliveries(session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID) -> Sequence[Delivery]:
    """The last deliveries of the user's webhook, the newest first. Raises `NotFound`."""
    await read_trigger(session, user_id, flow_id, trigger_id)
    found = [*await _read_accepted(session, trigger_id), *await _read_recorded(session, trigger_id)]
    return sorted(found, key=lambda delivery: (delivery.received_at, delivery.id), reverse=True)[:MAX_DELIVERIES]


async def find_delivered_input(
    session: AsyncSession, trigger_id: UUID, delivery_id: UUID
) -> sa.Row[UUID, str | None, InputEncoding, str | None]:
    """The id, input, encoding and trigger's facts of the execution of an accepted or repeated delivery.

    Raises `NotFound`, and `Conflict` for a rejected delivery.
    """
    wanted = sa.select(WebhookDeliveryRecord.execution_id).where(
        WebhookDeliveryRecord.id == delivery_id, WebhookDeliveryRecord.trigger_id == trigger_id
    )
    recorded = (await session.execute(wanted)).first()
    if recorded is not None and recorded.execution_id is None:
        raise Conflict("delivery_rejected", "The delivery was rejected, and its body is not stored")
    execution_id = delivery_id if recorded is None else recorded.execution_id
    execution = ExecutionRecord
    row = (
        await session.execute(
            sa.select(execution.id, execution.input_payload, execution.input_encoding, execution.trigger_context).where(
                execution.id == execution_id, _is_of(trigger_id)
            )
        )
    ).first()
    if row is None:
        raise NotFound("Delivery")
    return row


async def _read_accepted(session: AsyncSession, trigger_id: UUID) -> list[Delivery]:
    """The deliveries that started executions."""
    execution = ExecutionRecord
    payload = execution.input_payload
    is_url = execution.input_encoding == InputEncoding.DATA_URL
    rows = await session.execute(
        sa.select(
            execution.id,
            execution.started_at,
            sa.func.coalesce(text_bytes(payload), 0).label("size"),
            sa.case((is_url, sa.func.substr(payload, 1, MAX_PREFIX))).label("start"),
            sa.case((is_url, sa.func.substr(payload, sa.func.length(payload) - 1))).label("end"),
            execution.retry_of,
        )
        .where(_is_of(trigger_id))
        .order_by(execution.started_at.desc(), execution.id.desc())
        .limit(MAX_DELIVERIES)
    )
    return [
        Delivery(
            row.id,
            row.started_at,
            "accepted",
            ACCEPTED,
            None,
            None,
            row.size if row.start is None else _decoded_size(row.size, row.start, row.end),
            row.id,
            row.retry_of,
        )
        for row in rows
    ]


async def _read_recorded(session: AsyncSession, trigger_id: UUID) -> list[Delivery]:
    """The deliveries that started no execution."""
    rows = await session.scalars(
        sa.select(WebhookDeliveryRecord)
        .where(WebhookDeliveryRecord.trigger_id == trigger_id)
        .order_by(WebhookDeliveryRecord.id.desc())
        .limit(MAX_DELIVERIES)
    )
    return [
        Delivery(
            row.id,
            row.received_at,
            "rejected" if row.execution_id is None else "repeated",
            row.status,
            row.code,
            row.message,
            row.bytes,
            row.execution_id,
            None,
        )
        for row in rows
    ]


def _is_of(trigger_id: UUID) -> sa.ColumnElement[bool]:
    return sa.and_(ExecutionRecord.trigger_id == trigger_id, ExecutionRecord.trigger_type == TriggerType.WEBHOOK)


def _decoded_size(size: int, start: str, end: str) -> int:
    """The bytes that a base64 `data:` URL of this size encodes."""
    return (size - start.find(",") - 1) // 4 * 3 - end.count("=")
