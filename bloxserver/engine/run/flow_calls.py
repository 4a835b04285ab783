"""Calls from one flow to another: the called execution is an ordinary one with a parent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.base import BlockError
from bloxserver.clock import now
from bloxserver.engine.queue.leases import lock_lease
from bloxserver.engine.queue.values import LeaseLost
from bloxserver.engine.retry import retry_transaction
from bloxserver.errors import BadRequest, BloxError, Conflict
from bloxserver.ids import read_id
from bloxserver.models.database import Database
from bloxserver.models.enums import BillingStatus, FlowStatus, Tier, TriggerType
from bloxserver.models.tables import ExecutionRecord, FlowRecord, UserRecord
from bloxserver.plans import get_plan
from bloxserver.queries.requesters import owned_by
from bloxserver.queries.usage import period_at, stored_bytes_of
from bloxserver.services.executions import MAX_TARGET_LENGTH, Input, accept, require_depth
from bloxserver.services.usage import count_run, require_storage
from bloxserver.storable import json_text, storable_text

RETRYABLE = frozenset({"flow_not_running"})
"""A flow that is being restarted runs again soon. Other errors, like a wrong name, do not disappear."""
MAX_NAME_LENGTH = 100


class CallingExecution(NamedTuple):
    """The execution that calls. `key` names one attempt at one of its steps: a repeated call finds the first one."""

    id: UUID
    user_id: UUID
    """The owner of its flow, and of all flows that it may call."""
    depth: int
    key: str
    lease: UUID | None
    """The lease of the calling worker; no longer valid if that worker was frozen."""


async def call_flow(
    session: AsyncSession, *, caller: CallingExecution, flow: str, payload: JsonValue, target: str | None
) -> UUID:
    """Accept an execution of the user's flow of this id or name, and count it; returns its id.

    Raises `Conflict` if the caller has ended or was claimed by another worker, `BadRequest` (`flow_not_found`,
    `flow_ambiguous`, `flow_not_running`, `call_depth_exceeded`), `Forbidden` at a limit. No message quotes
    `flow`, which may come from a secret.
    """
    found = await _find(session, caller.user_id, flow)
    try:
        await lock_lease(session, (caller.id, caller.lease), key_share=True)
    except LeaseLost:
        raise Conflict("execution_ended", "The calling execution has ended, or was claimed by another worker") from None
    accepted = await session.scalar(
        sa.select(ExecutionRecord.id).where(
            ExecutionRecord.parent_id == caller.id, ExecutionRecord.parent_key == caller.key
        )
    )
    if accepted is not None:
        return accepted
    require_depth(caller.depth + 1)
    called = _only(found)
    if called.status is not FlowStatus.RUNNING:
        raise BadRequest("flow_not_running", f"The called flow is not running (status: {called.status.value})")
    moment = now()
    period = period_at(moment, called.current_period_start, called.current_period_end)
    plan = get_plan(called.tier or Tier.FREE, called.limits, called.billing_status)
    require_storage(plan, called.stored_bytes)
    await count_run(session, caller.user_id, plan, period, moment)
    execution = await accept(
        session,
        flow_id=called.id,
        trigger_type=TriggerType.MANUAL,
        target=None if target is None else storable_text(target[:MAX_TARGET_LENGTH]),
        given=Input(json_text(payload)),
        parent_id=caller.id,
        parent_key=caller.key,
        depth=caller.depth + 1,
    )
    return execution.id


class _CalledFlow(NamedTuple):
    id: UUID
    status: FlowStatus
    tier: Tier | None
    limits: dict[str, Any] | None
    billing_status: BillingStatus | None
    stored_bytes: int
    """The bytes that the owner stores."""
    current_period_start: datetime | None
    current_period_end: datetime | None


async def _find(session: AsyncSession, user_id: UUID, flow: str) -> list[_CalledFlow]:
    """The user's flow of this id, or up to two of this name, locked against deletion until the transaction ends."""
    flow_id = read_id(flow)
    name = storable_text(flow)[: MAX_NAME_LENGTH + 1]  # a truncated name is longer than any stored name
    rows = await session.execute(
        sa.select(
            FlowRecord.id,
            FlowRecord.status,
            UserRecord.tier,
            UserRecord.limits,
            UserRecord.billing_status,
            stored_bytes_of(FlowRecord.user_id),
            UserRecord.current_period_start,
            UserRecord.current_period_end,
        )
        .outerjoin(UserRecord, UserRecord.id == FlowRecord.user_id)
        .where(owned_by(user_id), FlowRecord.name == name if flow_id is None else FlowRecord.id == flow_id)
        .limit(2)
        .with_for_update(read=True, key_share=True, of=FlowRecord)
    )
    return [_CalledFlow(*row) for row in rows]


def _only(found: Sequence[_CalledFlow]) -> _CalledFlow:
    """Raises `BadRequest`."""
    if not found:
        raise BadRequest("flow_not_found", "You have no flow with this id or name")
    if len(found) > 1:
        raise BadRequest("flow_ambiguous", "Several flows have this name: use the id")
    return found[0]


class FlowCalls:
    """The calls of one attempt at a step: all of them are the same call."""

    def __init__(self, database: Database, caller: CallingExecution) -> None:
        self._database = database
        self._caller = caller

    async def call(self, flow: str, payload: JsonValue, target: str | None) -> UUID:
        """The id of the execution that this call, or an earlier one, has started; raises `BlockError`."""

        async def work(session: AsyncSession) -> UUID:
            return await call_flow(session, caller=self._caller, flow=flow, payload=payload, target=target)

        try:
            return await retry_transaction(self._database, work)
        except BloxError as error:
            raise BlockError(error.code, error.message, retryable=error.code in RETRYABLE) from None
