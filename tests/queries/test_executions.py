"""Reads of executions."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord, UserRecord
from bloxserver.queries.executions import (
    find_execution,
    read_execution,
    read_executions,
    read_outline,
    read_progress,
    read_statistics,
    require_execution,
)
from bloxserver.queries.paging import PageRequest
from tests.factories import create_execution, create_flow, create_trigger, create_user
from tests.statements import count_statements
from tests.steps import create_step

MINUTE = timedelta(minutes=1)
PAGE = PageRequest(1, 10)


async def test_executions_are_listed_in_pages_from_the_newest(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    moment = now()
    middle, oldest, newest = [
        await create_execution(session, flow, started_at=moment - age * MINUTE) for age in (2, 3, 1)
    ]
    await create_execution(session, await create_flow(session, user), started_at=moment)
    first = await read_executions(session, user.id, flow.id, PageRequest(1, 2), None)
    second = await read_executions(session, user.id, flow.id, PageRequest(2, 2), None)
    assert [row.id for row in first.items] == [newest.id, middle.id]
    assert [row.id for row in second.items] == [oldest.id]
    assert (first.total, first.has_more, second.has_more) == (3, True, False)


async def test_list_with_a_status_counts_only_executions_of_this_status(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    failed = await create_execution(session, flow, status=ExecutionStatus.ERROR)
    await create_execution(session, flow, status=ExecutionStatus.SUCCESS)
    page = await read_executions(session, user.id, flow.id, PAGE, ExecutionStatus.ERROR)
    assert ([row.id for row in page.items], page.total) == ([failed.id], 1)
    page = await read_executions(session, user.id, flow.id, PAGE, ExecutionStatus.TIMEOUT)
    assert (list(page.items), page.total) == ([], 0)


async def test_list_and_statistics_of_another_users_flow_are_not_found(session: AsyncSession, flow: FlowRecord) -> None:
    other = await create_user(session)
    await create_execution(session, flow)
    for read in (read_executions(session, other.id, flow.id, PAGE, None), read_statistics(session, other.id, flow.id)):
        with pytest.raises(NotFound) as error:
            await read
        assert (error.value.code, error.value.status) == ("flow_not_found", 404)


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
        assert await read_progress(session, [execution_id]) == {}
        assert await read_outline(session, execution_id) is None


async def test_statistics_count_executions_by_status_and_average_known_durations(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    moment = now()
    for status, duration_ms, age in (
        (ExecutionStatus.SUCCESS, 100, 4),
        (ExecutionStatus.SUCCESS, 300, 3),
        (ExecutionStatus.ERROR, 200, 2),
        (ExecutionStatus.RUNNING, None, 1),
    ):
        started_at = moment - age * MINUTE
        await create_execution(session, flow, status=status, duration_ms=duration_ms, started_at=started_at)
    row = await read_statistics(session, user.id, flow.id)
    assert (row.flow_id, row.executions_total, row.executions_success, row.executions_error) == (flow.id, 4, 2, 1)
    assert (row.avg_duration_ms, row.last_executed_at) == (200, moment - MINUTE)


async def test_statistics_of_a_flow_without_executions_are_zero(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    row = await read_statistics(session, user.id, flow.id)
    assert (row.executions_total, row.executions_success, row.executions_error, row.avg_duration_ms) == (0, 0, 0, 0)
    assert row.last_executed_at is None


async def test_progress_of_several_executions_is_read_in_one_statement(
    session: AsyncSession, flow: FlowRecord, database_engine: AsyncEngine
) -> None:
    running = await create_execution(session, flow)
    ended = await create_execution(session, flow, status=ExecutionStatus.ERROR)
    without_steps = await create_execution(session, flow)
    for execution, sequence in ((running, 1), (running, 7), (ended, 2)):
        await create_step(session, execution, f"l{sequence}", sequence=sequence)
    ids = [running.id, ended.id, without_steps.id, uuid4(), running.id]
    with count_statements(database_engine) as statements:
        progress = await read_progress(session, ids)
    assert progress == {
        running.id: (ExecutionStatus.RUNNING, 7),
        ended.id: (ExecutionStatus.ERROR, 2),
        without_steps.id: (ExecutionStatus.RUNNING, None),
    }
    assert len(statements) == 1
