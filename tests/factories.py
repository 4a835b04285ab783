"""Creates rows for tests, with defaults, and commits them so that requests see them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    FlowStatus,
    TriggerRecord,
    TriggerType,
    UserRecord,
)


async def _saved(session: AsyncSession, record: Any) -> Any:
    session.add(record)
    await session.commit()
    return record


async def create_user(session: AsyncSession, **values: Any) -> UserRecord:
    clerk_id = f"user_{uuid4().hex}"
    defaults = {"clerk_id": clerk_id, "email": f"{clerk_id}@example.com"}
    user: UserRecord = await _saved(session, UserRecord(**defaults | values))
    return user


async def create_flow(session: AsyncSession, user: UserRecord, **values: Any) -> FlowRecord:
    defaults = {"name": "A flow", "status": FlowStatus.RUNNING}
    flow: FlowRecord = await _saved(session, FlowRecord(user_id=user.id, **defaults | values))
    return flow


async def create_trigger(session: AsyncSession, flow: FlowRecord, **values: Any) -> TriggerRecord:
    kind = values.get("type", TriggerType.WEBHOOK)
    token = f"token-{uuid4().hex}" if kind is TriggerType.WEBHOOK else None
    defaults = {"type": kind, "name": "A trigger", "webhook_token": token}
    trigger: TriggerRecord = await _saved(session, TriggerRecord(flow_id=flow.id, **defaults | values))
    return trigger


async def create_execution(session: AsyncSession, flow: FlowRecord, **values: Any) -> ExecutionRecord:
    defaults = {"trigger_type": TriggerType.MANUAL}
    execution: ExecutionRecord = await _saved(session, ExecutionRecord(flow_id=flow.id, **defaults | values))
    return execution
