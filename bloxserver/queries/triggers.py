from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.enums import FlowStatus, Tier, TriggerType
from bloxserver.api.models.tables import FlowRecord, TriggerRecord, UserRecord
from bloxserver.errors import NotFound
from bloxserver.queries.flows import owned_by, require_flow

MAX_TOKEN_LENGTH = 255


async def read_triggers(session: AsyncSession, user_id: UUID, flow_id: UUID) -> Sequence[TriggerRecord]:
    """All triggers of the user's flow, the oldest first; raises `NotFound` for the flow."""
    await require_flow(session, user_id, flow_id)
    triggers = await session.scalars(
        sa.select(TriggerRecord)
        .where(TriggerRecord.flow_id == flow_id)
        .order_by(TriggerRecord.created_at, TriggerRecord.id)
    )
    return triggers.all()


async def read_trigger(session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID) -> TriggerRecord:
    """One trigger of the user's flow; raises `NotFound`."""
    trigger = await session.scalar(
        sa.select(TriggerRecord)
        .join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
        .where(owned_by(user_id), FlowRecord.id == flow_id, TriggerRecord.id == trigger_id)
    )
    if trigger is None:
        raise NotFound("Trigger")
    return trigger


class WebhookRow(NamedTuple):
    """All that taking in a webhook needs to know."""

    trigger_id: UUID
    trigger_name: str
    config: dict[str, Any]
    flow_id: UUID
    flow_name: str
    flow_status: FlowStatus
    active_version_id: UUID | None
    user_id: UUID
    tier: Tier | None
    current_period_start: datetime | None
    current_period_end: datetime | None


async def read_webhook(session: AsyncSession, token: str) -> WebhookRow:
    """The webhook with this token, with its flow and its owner, in one statement; raises `NotFound`."""
    if len(token) > MAX_TOKEN_LENGTH or not token.isprintable():
        raise NotFound("Webhook")
    row = (
        await session.execute(
            sa.select(
                TriggerRecord.id,
                TriggerRecord.name,
                TriggerRecord.config,
                FlowRecord.id,
                FlowRecord.name,
                FlowRecord.status,
                FlowRecord.active_version_id,
                FlowRecord.user_id,
                UserRecord.tier,
                UserRecord.current_period_start,
                UserRecord.current_period_end,
            )
            .join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
            .outerjoin(UserRecord, UserRecord.id == FlowRecord.user_id)
            .where(TriggerRecord.webhook_token == token, TriggerRecord.type == TriggerType.WEBHOOK)
        )
    ).first()
    if row is None:
        raise NotFound("Webhook")
    return WebhookRow(*row)
