from __future__ import annotations

import json
import secrets
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import iso_utc, now
from bloxserver.errors import BadRequest, LimitReached
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import AuditAction, TriggerType
from bloxserver.models.tables import TriggerRecord
from bloxserver.plans import Plan
from bloxserver.queries.flows import read_flow
from bloxserver.queries.triggers import count_triggers, read_trigger
from bloxserver.queries.users import read_plan
from bloxserver.raw_json import RawJson, plain_object
from bloxserver.services import audit
from bloxserver.services.cron import check_schedule, upcoming
from bloxserver.services.webhook_responses import check_response
from bloxserver.services.webhook_schemes import check_signature

TOKEN_BYTES = 32
NO_FAILURE = {"failed_attempts": 0, "last_error": None, "retry_at": None}
"""The columns of a schedule whose last attempt did not fail."""


async def create_trigger(
    session: AsyncSession, user_id: UUID, flow_id: UUID, kind: TriggerType, name: str, config: dict[str, Any] | RawJson
) -> TriggerRecord:
    """Create a trigger of the user's flow.

    Raises `NotFound`, `LimitReached`, and `Unprocessable` for a schedule that never fires, or an invalid config of a
    webhook.
    """
    plan = await read_plan(session, user_id)
    await read_flow(session, user_id, flow_id, lock=True)  # the lock makes the count of triggers exact
    _check_size(config, plan)
    await _check_count(session, flow_id, plan)
    if kind is TriggerType.SCHEDULE:
        check_schedule(plain_object(config))
    if kind is TriggerType.WEBHOOK:
        check_signature(plain_object(config))
        check_response(plain_object(config))
    trigger = TriggerRecord(
        flow_id=flow_id,
        type=kind,
        name=name,
        config=config,
        webhook_token=_new_token() if kind is TriggerType.WEBHOOK else None,
    )
    session.add(trigger)
    await session.flush()
    action, after = AuditAction.TRIGGER_CREATED, {"type": kind, "name": name}
    await audit.record(session, action, user_id, trigger.id, flow_id=flow_id, after=after)
    wake_engine_after_commit(session, WakeReason.FLOW)  # sets the first firing of a schedule
    return trigger


async def update_trigger(
    session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID, changes: dict[str, Any]
) -> TriggerRecord:
    """Change the columns in `changes`.

    Raises `NotFound`, `LimitReached`, and `Unprocessable` for a schedule that never fires, or an invalid config of a
    webhook.
    """
    # Locked: a sweep that arms the schedule meanwhile would keep the firing time of the previous config.
    trigger = await read_trigger(session, user_id, flow_id, trigger_id, lock=bool(changes))
    if "config" in changes:
        _check_size(changes["config"], await read_plan(session, user_id))
    if trigger.type is TriggerType.SCHEDULE:
        changes = changes | _schedule_changes(trigger, changes)
    if trigger.type is TriggerType.WEBHOOK and "config" in changes:
        check_signature(plain_object(changes["config"]))
        check_response(plain_object(changes["config"]))
    before = _audited(trigger)
    for name, value in changes.items():
        setattr(trigger, name, value)
    await session.flush()
    before, after = audit.difference(before, _audited(trigger))
    if after:
        action, hidden = AuditAction.TRIGGER_UPDATED, {"config"}  # a config may contain anything
        await audit.record(
            session, action, user_id, trigger_id, flow_id=flow_id, before=before, after=after, hidden=hidden
        )
    wake_engine_after_commit(session, WakeReason.FLOW)
    return trigger


def _audited(trigger: TriggerRecord) -> dict[str, Any]:
    """What the audit log shows of a trigger, and its config."""
    return {"name": trigger.name, "enabled": trigger.enabled, "config": trigger.config}


def _check_size(config: dict[str, Any] | RawJson, plan: Plan) -> None:
    # A large config has been written in the same way, by `api.isolated_bodies`.
    size = len((config.text if isinstance(config, RawJson) else _compact(config)).encode())
    if size > plan.trigger_config_bytes:
        raise LimitReached("trigger_config_bytes", plan.trigger_config_bytes, size, "Send a smaller config.")


def _compact(config: dict[str, Any]) -> str:
    return json.dumps(config, ensure_ascii=False, separators=(",", ":"))


async def _check_count(session: AsyncSession, flow_id: UUID, plan: Plan) -> None:
    used = await count_triggers(session, flow_id)
    if used >= plan.triggers_per_flow:
        hint = "Delete a trigger that is no longer used, or upgrade your plan."
        raise LimitReached("triggers_per_flow", plan.triggers_per_flow, used, hint)


def _schedule_changes(trigger: TriggerRecord, changes: dict[str, Any]) -> dict[str, Any]:
    """The columns to set when a schedule's config or `enabled` changes. Raises `Unprocessable`.

    The schedule is armed from now on. Missed firings of the previous config or of a disabled schedule are not caught
    up.
    """
    if "config" in changes or changes.get("enabled"):
        check_schedule(plain_object(changes.get("config", trigger.config)))
        return {"next_fire_at": None, "disabled_reason": None, **NO_FAILURE}
    return {"next_fire_at": None, **NO_FAILURE} if "enabled" in changes else {}


async def regenerate_token(
    session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID, grace: timedelta = timedelta()
) -> TriggerRecord:
    """Replace the token of a webhook. Raises `NotFound`, `BadRequest`.

    The old token is valid for the grace period, and every earlier one is invalid after the commit.
    """
    trigger = await read_trigger(session, user_id, flow_id, trigger_id, lock=True)
    if trigger.type is not TriggerType.WEBHOOK:
        raise BadRequest("trigger_not_a_webhook", "Can only regenerate token for webhook triggers")
    trigger.previous_token = trigger.webhook_token if grace else None
    trigger.previous_token_expires_at = expires_at = now() + grace if grace else None
    trigger.webhook_token = _new_token()
    trigger.webhook_url = None
    await session.flush()
    action, after = (
        AuditAction.TRIGGER_TOKEN_REGENERATED,
        {"previousTokenExpiresAt": expires_at and iso_utc(expires_at)},
    )
    await audit.record(session, action, user_id, trigger_id, flow_id=flow_id, after=after)
    return trigger


async def upcoming_firings(
    session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID, count: int
) -> list[datetime]:
    """The next firings of a schedule, in UTC; raises `NotFound`, `BadRequest` for another kind of trigger."""
    trigger = await read_trigger(session, user_id, flow_id, trigger_id)
    if trigger.type is not TriggerType.SCHEDULE:
        raise BadRequest("trigger_not_a_schedule", "Only schedules have upcoming firings")
    return upcoming(plain_object(trigger.config), now(), count)


def _new_token() -> str:
    """43 characters of URL-safe base64."""
    return secrets.token_urlsafe(TOKEN_BYTES)
