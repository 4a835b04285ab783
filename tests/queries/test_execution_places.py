"""The place of a row in a list, found by counters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import ExecutionStatus, FlowRecord
from bloxserver.queries.execution_places import place_of
from tests.factories import create_execution

MINUTE = timedelta(minutes=1)
LAST = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


async def test_place_is_the_minute_of_the_row_and_the_number_of_newer_rows_in_it(
    session: AsyncSession, flow: FlowRecord
) -> None:
    starts = [LAST, NOON + 14 * MINUTE, NOON + 14 * MINUTE, NOON, NOON - MINUTE, datetime(1970, 1, 1, tzinfo=UTC)]
    for start in starts:
        await create_execution(session, flow, started_at=start + timedelta(seconds=7), status=ExecutionStatus.ERROR)
    await create_execution(session, flow, started_at=NOON, status=ExecutionStatus.SUCCESS)
    place = place_of(sa.bindparam("offset", type_=sa.BigInteger), [ExecutionStatus.ERROR])
    statement = sa.select(place.until, place.offset)
    for offset, start in enumerate(starts):
        row = (await session.execute(statement, {"offset": offset, "flow_id": flow.id})).one()
        assert tuple(row) == (start + (MINUTE - MICROSECOND), starts[:offset].count(start))
    assert tuple((await session.execute(statement, {"offset": 6, "flow_id": flow.id})).one()) == (None, 0)


@pytest.mark.parametrize("statuses", [[], [ExecutionStatus.ERROR, ExecutionStatus.SUCCESS]])
async def test_all_or_several_statuses_are_counted(
    session: AsyncSession, flow: FlowRecord, statuses: list[ExecutionStatus]
) -> None:
    for age, status in enumerate(("error", "success", "running")):
        await create_execution(session, flow, started_at=NOON - age * MINUTE, status=ExecutionStatus(status))
    place = place_of(sa.literal(2), statuses)
    until = await session.scalar(sa.select(place.until), {"flow_id": flow.id})
    assert until == (None if statuses else NOON - MINUTE - MICROSECOND)
