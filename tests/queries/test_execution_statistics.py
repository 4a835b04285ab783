"""Statistics of a flow."""

from __future__ import annotations

from datetime import timedelta
from statistics import mean

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord, TriggerType, UserRecord
from bloxserver.queries import execution_statistics
from bloxserver.queries.execution_statistics import read_statistics
from tests.factories import create_execution, create_flow, create_user
from tests.requesters import requester
from tests.statements import count_statements

MINUTE = timedelta(minutes=1)
S = ExecutionStatus


async def test_statistics_count_executions_by_status_and_average_known_durations(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, database_engine: AsyncEngine
) -> None:
    moment = now()
    rows = [(S.SUCCESS, 100), (S.SUCCESS, 301), (S.ERROR, 0), (S.TIMEOUT, 7), (S.CANCELLED, None), (S.RUNNING, None)]
    for age, (status, duration_ms) in enumerate(rows, start=1):
        values = {"started_at": moment - age * MINUTE, "status": status, "duration_ms": duration_ms}
        await create_execution(session, flow, **values, input_tokens=age, output_tokens=10 * age)
    await create_execution(session, flow, mode="test", duration_ms=10**6, started_at=moment, input_tokens=10**6)
    await create_execution(session, await create_flow(session, user), duration_ms=10**6)
    await session.execute(sa.insert(ExecutionRecord).values(flow_id=flow.id, trigger_type=TriggerType.MANUAL))
    await session.execute(sa.text("UPDATE executions SET status = 'lost' WHERE duration_ms = 7"))
    with count_statements(database_engine) as statements:
        found = dict(await read_statistics(session, requester(user), flow.id))
    assert found.pop("last_executed_at") > moment
    assert found == {
        "flow_id": flow.id,
        "executions_total": 7,
        "executions_success": 2,
        "executions_error": 1,
        "executions_timeout": 0,
        "executions_cancelled": 1,
        "executions_running": 2,
        "avg_duration_ms": mean((100, 301, 0, 7)),
        "p50_duration_ms": 7,
        "p95_duration_ms": 301,
        "p99_duration_ms": 301,
        "input_tokens": 21,
        "output_tokens": 210,
    }
    assert len(statements) == 1


async def test_statistics_of_a_flow_without_executions_are_zero(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    found = dict(await read_statistics(session, requester(user), flow.id))
    empty = {found.pop(name) for name in ("last_executed_at", *(f"p{percent}_duration_ms" for percent in (50, 95, 99)))}
    assert (empty, found.pop("flow_id"), set(found.values())) == ({None}, flow.id, {0})


async def test_percentiles_are_of_the_newest_executions_with_a_duration(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_statistics, "RECENT_DURATIONS", 100)
    monkeypatch.setattr(execution_statistics, "STATISTICS", execution_statistics.statement())
    moment = now()
    durations = [*range(100), *[10**9] * 5]
    session.add_all(
        ExecutionRecord(
            flow_id=flow.id,
            trigger_type=TriggerType.MANUAL,
            duration_ms=duration_ms,
            started_at=moment - age * MINUTE,
        )
        for age, duration_ms in enumerate([None, None, *durations])
    )
    await session.commit()
    found = await read_statistics(session, requester(user), flow.id)
    assert [found[f"p{percent}_duration_ms"] for percent in (50, 95, 99)] == [49, 94, 98]


async def test_statistics_of_another_users_flow_are_not_found(session: AsyncSession, flow: FlowRecord) -> None:
    await create_execution(session, flow)
    other = requester(await create_user(session))
    with pytest.raises(NotFound) as error:
        await read_statistics(session, other, flow.id)
    assert (error.value.code, other.confirmed) == ("flow_not_found", [other.id])
