"""Reads of executions."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord, UserRecord
from bloxserver.queries.executions import (
    find_execution,
    read_execution,
    read_outline,
    require_execution,
)
from bloxserver.queries.paging import PageRequest
from tests.factories import create_execution, create_flow, create_trigger, create_user

MINUTE = timedelta(minutes=1)
PAGE = PageRequest(1, 10)


async def test_execution_is_found_only_in_its_flow_and_for_its_owner(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    execution = await create_execution(session, flow)
    other, other_flow = await create_user(session), await create_flow(session, user)
    for lock in (False, True):
        found = await read_execution(session, user.id, flow.id, execution.id, lock=lock)
        assert found.id == execution.id
    await require_execution(session, user.id, flow.id, execution.id)
    for read in (read_execution, require_execution):
        for user_id, flow_id, execution_id in (
            (other.id, flow.id, execution.id),
            (user.id, other_flow.id, execution.id),
            (user.id, flow.id, uuid4()),
        ):
            with pytest.raises(NotFound) as error:
                await read(session, user_id, flow_id, execution_id)
            assert (error.value.code, error.value.status) == ("execution_not_found", 404)


async def test_execution_read_again_has_the_values_of_the_database(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    execution = await create_execution(session, flow)
    await session.execute(
        sa.update(ExecutionRecord).values(status=ExecutionStatus.CANCELLED).execution_options(synchronize_session=False)
    )
    found = await read_execution(session, user.id, flow.id, execution.id)
    assert found.status is ExecutionStatus.CANCELLED


async def test_trigger_id_is_null_once_the_trigger_is_deleted(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    trigger = await create_trigger(session, flow)
    execution = await create_execution(session, flow, trigger_id=trigger.id)

    async def trigger_ids() -> set[UUID | None]:
        found = await find_execution(session, execution.id)
        outline = await read_outline(session, execution.id)
        assert found is not None
        assert outline is not None
        read = await read_execution(session, user.id, flow.id, execution.id)
        return {found.trigger_id, outline.trigger_id, read.trigger_id}

    assert await trigger_ids() == {trigger.id}
    trigger.deleted_at = now()
    await session.commit()
    assert await trigger_ids() == {None}


async def test_reads_without_a_user_return_executions_of_every_user(session: AsyncSession, flow: FlowRecord) -> None:
    execution = await create_execution(
        session, flow, status=ExecutionStatus.SUCCESS, input_payload="in", output_payload="out"
    )
    found, outline = await find_execution(session, execution.id), await read_outline(session, execution.id)
    assert found is not None
    assert (found.input_payload, found.output_payload) == ("in", "out")
    assert outline is not None
    assert (outline.id, outline.status, outline.flow_id) == (execution.id, ExecutionStatus.SUCCESS, flow.id)
    assert {"input_payload", "output_payload"}.isdisjoint(outline._mapping.keys())


async def test_reads_without_a_user_return_none_for_deleted_flows_and_unknown_ids(
    session: AsyncSession, user: UserRecord
) -> None:
    execution = await create_execution(session, await create_flow(session, user, deleted_at=now()))
    for execution_id in (execution.id, uuid4()):
        assert await find_execution(session, execution_id) is None
        assert await read_outline(session, execution_id) is None
