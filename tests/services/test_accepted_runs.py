from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.enums import InputEncoding, TriggerType
from bloxserver.models.tables import ExecutionRecord, UsageRecord, UserRecord
from bloxserver.queries.usage import Period
from bloxserver.services.accepted_runs import AcceptedRun, insert_runs
from tests.factories import create_flow, create_user
from tests.statements import count_statements

NOVEMBER = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
DECEMBER = Period(datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))


def execution_of(flow_id: UUID, **values: Any) -> dict[str, Any]:
    return {
        "id": new_id(),
        "flow_id": flow_id,
        "flow_version_id": None,
        "flow_version": 3,
        "trigger_id": None,
        "trigger_type": TriggerType.WEBHOOK,
        "target": "entry",
        "started_at": now(),
        "input_payload": "é\n" * 1000,
        "input_encoding": InputEncoding.DATA_URL,
        "depth": 2,
        "trace_parent": "00-trace",
        "vars_id": None,
        "trigger_context": None,
    } | values


async def runs_of(session: AsyncSession, user: UserRecord) -> dict[datetime, int]:
    record = UsageRecord
    total = sa.select(record.period_start, sa.func.sum(record.workflow_runs)).where(record.user_id == user.id)
    return {row[0]: int(row[1]) for row in await session.execute(total.group_by(record.period_start))}


async def test_runs_of_several_users_and_periods_are_inserted_and_counted(
    session: AsyncSession, database_engine: AsyncEngine, user: UserRecord
) -> None:
    other = await create_user(session)
    flows = [await create_flow(session, owner) for owner in (user, other)]
    counted = [(user, 0, NOVEMBER), (other, 1, NOVEMBER), (user, 0, DECEMBER), (user, 0, NOVEMBER)]
    runs = [AcceptedRun(execution_of(flows[flow].id), owner.id, period) for owner, flow, period in counted]
    await session.commit()
    for _ in range(2):
        with count_statements(database_engine) as statements:
            await insert_runs(session, runs)
        assert len(statements) == (1 if database_engine.dialect.name == "postgresql" else 2)
        runs = [run._replace(execution=run.execution | {"id": new_id()}) for run in runs]
    assert await runs_of(session, user) == {NOVEMBER.start: 4, DECEMBER.start: 2}
    assert await runs_of(session, other) == {NOVEMBER.start: 2}
    ends = await session.scalars(sa.select(UsageRecord.period_end))
    assert set(ends) == {NOVEMBER.end, DECEMBER.end}
    assert await session.scalar(sa.select(sa.func.count()).select_from(ExecutionRecord)) == 8


async def test_inserted_execution_has_its_values_and_the_defaults_of_others(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await create_flow(session, user)
    values = execution_of(flow.id, started_at=now() - timedelta(microseconds=1))
    await insert_runs(session, [AcceptedRun(values, user.id, NOVEMBER)])
    execution = await session.get_one(ExecutionRecord, values["id"])
    assert {name: getattr(execution, name) for name in values} == values
    assert (execution.status, execution.crash_count, execution.input_tokens, execution.lease) == ("running", 0, 0, None)
