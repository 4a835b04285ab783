from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import set_committed_value

from bloxserver.clock import now
from bloxserver.errors import BadRequest, NotFound
from bloxserver.ids import new_id
from bloxserver.models.database import WakeReason, after_commit, wake_engine_after_commit
from bloxserver.models.enums import FlowStatus, InputEncoding, TriggerType
from bloxserver.models.tables import ExecutionRecord, FlowRecord
from bloxserver.observability import metrics
from bloxserver.observability.tracing import current_traceparent
from bloxserver.plans import Plan
from bloxserver.queries.requesters import owned_by
from bloxserver.queries.triggers import TriggerRow
from bloxserver.queries.usage import Period, period_at, stored_bytes_of
from bloxserver.raw_json import text_of_value
from bloxserver.services.usage import count_run, require_storage
from bloxserver.settings import get_settings
from bloxserver.storable import json_text

MAX_TARGET_LENGTH = 255
"""Longer than any listener's name, so a truncated target never names a listener."""


Facts = Mapping[str, JsonValue]
NO_FACTS: Facts = {}


class FlowNotRunning(BadRequest):
    """The flow was stopped or never started."""

    def __init__(self, status: FlowStatus) -> None:
        super().__init__("flow_not_running", f"Flow is not running (status: {status.value})")


class Input(NamedTuple):
    """The input of an execution, as it is stored."""

    payload: str | None
    encoding: InputEncoding = InputEncoding.TEXT


async def run_flow(
    session: AsyncSession, user_id: UUID, plan: Plan, period: Period, flow_id: UUID, given: Input
) -> ExecutionRecord:
    """Accept a manual run; raises `NotFound`, `BadRequest` if the flow does not run, `Forbidden` at a limit."""
    flow = (
        await session.execute(
            sa.select(FlowRecord.status, stored_bytes_of(user_id).label("stored_bytes")).where(
                owned_by(user_id), FlowRecord.id == flow_id
            )
        )
    ).first()
    if flow is None:
        raise NotFound("Flow")
    if flow.status is not FlowStatus.RUNNING:
        raise BadRequest("flow_not_running", f"Flow must be running to execute (current: {flow.status.value})")
    require_storage(plan, flow.stored_bytes)
    await count_run(session, user_id, plan, period, now())
    return await accept(session, flow_id=flow_id, trigger_type=TriggerType.MANUAL, given=given)


def require_depth(depth: int) -> None:
    """Raise `BadRequest` if the call depth exceeds `MAX_CALL_DEPTH`. This ends endless recursion between flows."""
    limit = get_settings().max_call_depth
    if depth > limit:
        raise BadRequest("call_depth_exceeded", f"Flows call each other more than {limit} deep")


async def accept_for_trigger(
    session: AsyncSession,
    trigger: TriggerRow,
    kind: TriggerType,
    given: Input,
    depth: int = 0,
    id: UUID | None = None,
    facts: Facts = NO_FACTS,
) -> ExecutionRecord:
    """Count and accept a run for a trigger, with this id. `facts` are what expressions can read of the trigger.

    Raises `Forbidden` at a limit, and the errors of `accept`."""
    moment = now()
    period = period_at(moment, trigger.current_period_start, trigger.current_period_end)
    require_storage(trigger.plan, trigger.stored_bytes)
    await count_run(session, trigger.user_id, trigger.plan, period, moment)
    return await accept(
        session,
        flow_id=trigger.flow_id,
        trigger_id=trigger.trigger_id,
        trigger_type=kind,
        target=target_of(trigger.config),
        given=given,
        depth=depth,
        id=id or new_id(),
        trigger_context=trigger_context(trigger, facts),
    )


def trigger_context(trigger: TriggerRow, facts: Facts) -> str:
    """The trigger's name and facts, as they are stored."""
    return json_text({"name": trigger.trigger_name, **facts})


def target_of(config: Mapping[str, Any]) -> str | None:
    """The entry listener that the config of a trigger specifies."""
    target = config.get("target")
    return target[:MAX_TARGET_LENGTH] if isinstance(target, str) else None


async def accept(session: AsyncSession, *, flow_id: UUID, given: Input, **values: Any) -> ExecutionRecord:
    """Insert an execution of a running flow: of its active version, unless `values` has another one.

    The caller checks limits and counts the run.
    Raises `FlowNotRunning` or `NotFound` if the flow was stopped or deleted since the caller read it.
    """
    values = (
        {"id": new_id()}
        | values
        | {
            "flow_id": flow_id,
            "started_at": now(),
            "input_payload": given.payload,
            "input_encoding": given.encoding,
            "trace_parent": current_traceparent(),
        }
    )
    columns = ExecutionRecord.__table__.c
    chosen: dict[str, Any] = {
        "flow_version_id": FlowRecord.active_version_id,
        "flow_version": FlowRecord.active_version,
        "vars_id": FlowRecord.vars_id,
    }
    chosen |= {name: sa.literal(value, columns[name].type) for name, value in values.items()}
    # One statement reads the status and locks the flow, so that a flow is `stopped` only after the executions that were
    # accepted before are visible: `reconcile_flow` waits for these locks. They do not conflict with a change of the
    # flow's status: under a steady stream of webhooks, a stop that waited for stronger locks would wait forever.
    row = (
        sa.select(*chosen.values())
        .select_from(FlowRecord)
        .where(FlowRecord.id == flow_id, FlowRecord.status == FlowStatus.RUNNING, FlowRecord.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    insert = sa.insert(ExecutionRecord).from_select(list(chosen), row).returning(ExecutionRecord)
    execution = await session.scalar(insert)
    if execution is None:
        exists = FlowRecord.id == flow_id, FlowRecord.deleted_at.is_(None)
        status = await session.scalar(sa.select(FlowRecord.status).where(*exists))
        raise NotFound("Flow") if status is None else FlowNotRunning(status)
    set_committed_value(execution, "cost_usd", 0.0)
    after_commit(session, metrics.EXECUTIONS_ACCEPTED.labels(execution.trigger_type.value).inc)
    wake_engine_after_commit(session, WakeReason.EXECUTION)
    return execution


def input_of_body(body: bytes, content_type: str | None) -> Input:
    """The input of a webhook's body: UTF-8 text unchanged, an empty body as null, else a `data:` URL (RFC 2397)."""
    if not body:
        return Input(None)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text:
        return Input(text)
    media_type = re.sub(r"\s*;\s*", ";", (content_type or "").strip()) or "application/octet-stream"
    media_type = quote(media_type, safe="!#$&'*+-.^_`|~/;=\"")
    return Input(f"data:{media_type};base64,{base64.b64encode(body).decode()}", InputEncoding.DATA_URL)


def input_of_json(value: Any) -> Input:
    """The input of a JSON payload: a string unchanged, null as null, any other value as JSON text."""
    return Input(value if value is None or isinstance(value, str) else text_of_value(value))
