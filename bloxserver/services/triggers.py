from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any
from uuid import UUID
from zoneinfo import available_timezones

import sqlalchemy as sa
from cronsim import CronSim, CronSimError
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.enums import TriggerType
from bloxserver.api.models.tables import ExecutionRecord, TriggerRecord
from bloxserver.errors import BadRequest, Unprocessable
from bloxserver.queries.flows import require_flow
from bloxserver.queries.triggers import read_trigger

TOKEN_BYTES = 32
MAX_CRON_LENGTH = 255


async def create_trigger(
    session: AsyncSession, user_id: UUID, flow_id: UUID, kind: TriggerType, name: str, config: dict[str, Any]
) -> TriggerRecord:
    """A new trigger of the user's flow; raises `NotFound`, and `Unprocessable` for a schedule that cannot fire."""
    await require_flow(session, user_id, flow_id)
    if kind is TriggerType.SCHEDULE:
        check_schedule(config)
    trigger = TriggerRecord(
        flow_id=flow_id,
        type=kind,
        name=name,
        config=config,
        webhook_token=_new_token() if kind is TriggerType.WEBHOOK else None,
    )
    session.add(trigger)
    await session.flush()
    return trigger


async def delete_trigger(session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID) -> None:
    """Delete the trigger and keep its executions; raises `NotFound`."""
    await read_trigger(session, user_id, flow_id, trigger_id)
    await session.execute(
        sa.update(ExecutionRecord)
        .where(ExecutionRecord.flow_id == flow_id, ExecutionRecord.trigger_id == trigger_id)
        .values(trigger_id=None)
    )
    await session.execute(sa.delete(TriggerRecord).where(TriggerRecord.id == trigger_id))


async def regenerate_token(session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID) -> TriggerRecord:
    """Give a webhook a new token; the old one is dead with the commit. Raises `NotFound`, `BadRequest`."""
    trigger = await read_trigger(session, user_id, flow_id, trigger_id)
    if trigger.type is not TriggerType.WEBHOOK:
        raise BadRequest("trigger_not_a_webhook", "Can only regenerate token for webhook triggers")
    trigger.webhook_token = _new_token()
    trigger.webhook_url = None
    await session.flush()
    return trigger


def check_schedule(config: dict[str, Any]) -> None:
    """Raise `Unprocessable` unless `cron` has five valid fields that come to pass, and `timezone` is a zone's name."""
    reasons = {}
    cron = config.get("cron")
    if not isinstance(cron, str):
        reasons["body.config.cron"] = "A schedule needs a cron expression of five fields"
    elif len(cron) > MAX_CRON_LENGTH or len(cron.split()) != 5 or not _fires(cron):
        reasons["body.config.cron"] = "Not a valid cron expression of five fields"
    zone = config.get("timezone", "UTC")
    if not isinstance(zone, str) or zone not in available_timezones():
        reasons["body.config.timezone"] = "Not the name of a time zone"
    if reasons:
        raise Unprocessable(reasons)


def _fires(cron: str) -> bool:
    try:
        next(CronSim(cron, datetime.now(UTC)))
    except (CronSimError, StopIteration):
        return False
    return True


def _new_token() -> str:
    """43 characters of URL-safe base64."""
    return secrets.token_urlsafe(TOKEN_BYTES)
