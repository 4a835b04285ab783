"""Setting the variables of flows."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, NotFound
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import FlowRecord, FlowVarsRecord, UserRecord
from bloxserver.services.flow_vars import KEPT, MAX_BYTES, set_vars
from tests.factories import create_execution, create_flow, create_user


async def stored(session: AsyncSession) -> list[str]:
    return sorted((await session.scalars(sa.select(FlowVarsRecord.values))).all())


async def test_definition_counts_as_unchanged(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    before = flow.updated_at
    await set_vars(session, user.id, flow.id, {"a": 1})
    assert await session.scalar(sa.select(FlowRecord.updated_at).where(FlowRecord.id == flow.id)) == before


async def test_replaced_variables_are_kept_while_an_execution_can_read_them(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await create_flow(session, user)
    await set_vars(session, user.id, flow.id, {"a": 1})
    first = await session.scalar(sa.select(FlowRecord.vars_id))
    execution = await create_execution(session, flow, vars_id=first)
    for number in (2, 3):
        await set_vars(session, user.id, flow.id, {"a": number})
    assert await stored(session) == ['{"a": 1}', '{"a": 2}', '{"a": 3}'], "they were replaced a moment ago"
    await session.execute(
        sa.update(FlowVarsRecord)
        .where(FlowVarsRecord.replaced_at.is_not(None))
        .values(replaced_at=now() - KEPT - timedelta(seconds=1))
    )
    await set_vars(session, user.id, flow.id, {"a": 4})
    assert await stored(session) == ['{"a": 1}', '{"a": 3}', '{"a": 4}'], "an execution runs with the first"
    execution.status = ExecutionStatus.SUCCESS
    await session.flush()
    await set_vars(session, user.id, flow.id, {"a": 5})
    assert '{"a": 1}' not in await stored(session)


async def test_size_is_limited(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    with pytest.raises(BadRequest) as caught:
        await set_vars(session, user.id, flow.id, {"a": "é" * (MAX_BYTES // 2)})
    assert caught.value.code == "vars_too_large"
    assert await stored(session) == []


async def test_flow_of_another_user_is_not_found(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, await create_user(session))
    with pytest.raises(NotFound):
        await set_vars(session, user.id, flow.id, {"a": 1})
