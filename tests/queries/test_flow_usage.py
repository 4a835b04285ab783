"""The runs and tokens of each flow in a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, Unprocessable
from bloxserver.models.tables import ExecutionRecord, FlowRecord, TriggerType, UserRecord
from bloxserver.queries.flow_usage import read_flow_usage
from tests.factories import create_execution, create_flow, create_user

BEGIN = datetime(2026, 3, 1, 10, 7, 40, tzinfo=UTC)
DAY = timedelta(days=1)


def minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


@pytest.mark.parametrize("minutes", [1, 4, 7, 8, 22, 23, 38, 53, 60, 200])
async def test_runs_and_tokens_from_one_minute_to_another_count(
    session: AsyncSession, user: UserRecord, minutes: int
) -> None:
    chance = Random(minutes)  # noqa: S311
    begin, end = BEGIN, BEGIN + timedelta(minutes=minutes)
    flows = [await create_flow(session, user, name=f"Flow {number}") for number in range(2)]
    rows = [
        ExecutionRecord(
            id=uuid4(),
            flow_id=chance.choice(flows).id,
            trigger_type=TriggerType.MANUAL,
            started_at=begin + timedelta(seconds=chance.randrange(-1800, minutes * 60 + 1800)),
            input_tokens=chance.randrange(5),
            output_tokens=chance.randrange(5),
        )
        for _ in range(400)
    ]
    session.add_all(rows)
    await session.commit()
    page = await read_flow_usage(session, user.id, begin, end, 10)
    assert (page.period_start, page.period_end, page.next_cursor) == (minute(begin), minute(end), None)
    counted = [row for row in rows if minute(begin) <= row.started_at < minute(end)]
    expected = []
    for flow in flows:
        own = [row for row in counted if row.flow_id == flow.id]
        tokens = sum(row.input_tokens for row in own), sum(row.output_tokens for row in own)
        expected.append((flow.id, flow.name, len(own), *tokens))
    found = [tuple(item.values()) for item in page.items]
    assert sorted(found) == sorted(item for item in expected if item[2])
    assert [item["runs"] for item in page.items] == sorted((item["runs"] for item in page.items), reverse=True)


async def test_pages_have_each_flow_once(session: AsyncSession, user: UserRecord) -> None:
    runs: dict[str, int] = {}
    for number, count in enumerate([2, 1, 2, 3, 0, 1, 2]):
        flow = await create_flow(session, user, name=str(number))
        for _ in range(count):
            await create_execution(session, flow, started_at=BEGIN)
        runs[flow.name] = count
    cursor, seen = None, []
    for _ in range(3):
        page = await read_flow_usage(session, user.id, BEGIN, BEGIN + DAY, 2, cursor)
        seen += [(item["flow_name"], item["runs"]) for item in page.items]
        cursor = page.next_cursor
    assert cursor is None
    assert [count for _, count in seen] == [3, 2, 2, 2, 1, 1]
    assert dict(seen) == {name: count for name, count in runs.items() if count}


async def test_other_flows_do_not_count(session: AsyncSession, user: UserRecord) -> None:
    async def used(owner: UserRecord, **values: object) -> FlowRecord:
        flow = await create_flow(session, owner, **values)
        await create_execution(session, flow, started_at=BEGIN)
        return flow

    own, second = await used(user), await used(user)
    await used(user, deleted_at=now())
    await used(await create_user(session))
    await create_execution(session, own, started_at=BEGIN, mode="other")
    page = await read_flow_usage(session, user.id, BEGIN, BEGIN + DAY, 10)
    assert {item["flow_id"]: item["runs"] for item in page.items} == {own.id: 1, second.id: 1}
    page = await read_flow_usage(session, user.id, BEGIN, BEGIN + DAY, 10, flow_ids=[second.id])
    assert [item["flow_id"] for item in page.items] == [second.id]
    assert (await read_flow_usage(session, user.id, BEGIN, BEGIN + DAY, 10, flow_ids=[])).items == []


async def test_times_without_a_minute_between_them_are_refused(session: AsyncSession, user: UserRecord) -> None:
    for end in (BEGIN, BEGIN - DAY, BEGIN + timedelta(seconds=19)):
        with pytest.raises(Unprocessable):
            await read_flow_usage(session, user.id, BEGIN, end, 10)
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    for begin in (datetime(1, 1, 1, tzinfo=UTC), last - timedelta(minutes=1)):
        assert (await read_flow_usage(session, user.id, begin, last, 10)).items == []


async def test_cursor_of_another_time_is_refused(session: AsyncSession, user: UserRecord) -> None:
    for _ in range(2):
        await create_execution(session, await create_flow(session, user), started_at=BEGIN)
    cursor = (await read_flow_usage(session, user.id, BEGIN, BEGIN + DAY, 1)).next_cursor
    with pytest.raises(BadRequest, match="cursor"):
        await read_flow_usage(session, user.id, BEGIN, BEGIN + 2 * DAY, 1, cursor)
