"""Lists of executions: pages, cursors, filters and totals."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.api.schemas import ExecutionSummary, FlowExecutionSummary
from bloxserver.errors import BadRequest, NotFound, Unprocessable
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    FlowRecord,
    TriggerRecord,
    TriggerType,
    UserRecord,
)
from bloxserver.queries import execution_filters, execution_lists, execution_pages
from bloxserver.queries.execution_filters import ExecutionFilter
from bloxserver.queries.execution_lists import ExecutionList, ListRequest, read_all_executions, read_executions
from bloxserver.queries.paging import PageRequest
from tests.factories import create_execution, create_flow, create_trigger, create_user
from tests.requesters import RecordedRequester, requester
from tests.statements import count_statements

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
S, T = ExecutionStatus, TriggerType
SMALL = 60
"""The number of executions that `small_limits` allows to count and to search."""
Read = Callable[[ListRequest], Awaitable[ExecutionList]]
NO_FILTER = ExecutionFilter()


def page(number: int, size: int, wanted: ExecutionFilter = NO_FILTER) -> ListRequest:
    return ListRequest(wanted, PageRequest(number, size))


def after(cursor: str | None, size: int, wanted: ExecutionFilter = NO_FILTER) -> ListRequest:
    return ListRequest(wanted, PageRequest(1, size), cursor)


def ids(found: ExecutionList) -> list[UUID]:
    return [UUID(json.loads(item)["id"]) for item in found.items]


async def insert(session: AsyncSession, flows: Sequence[FlowRecord], count: int, chance: Random) -> None:
    """Executions with all kinds of values. Their times are bunched, repeated, and partly those of wrong clocks."""
    trigger = await create_trigger(session, flows[0])
    moments = [
        NOON + timedelta(seconds=chance.choice((0.000001, 1, 60, 900)) * chance.randrange(50)) for _ in range(40)
    ]
    moments += [datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)]
    for _ in range(count):
        status = chance.choice(list(S))
        flow = chance.choice(flows)
        session.add(
            ExecutionRecord(
                id=uuid4(),
                flow_id=flow.id,
                trigger_id=trigger.id if flow is flows[0] and chance.random() < 0.5 else None,
                trigger_type=chance.choice(list(T)),
                status=status,
                started_at=chance.choice(moments),
                duration_ms=None if status is S.RUNNING else chance.randrange(100),
                filtered=chance.random() < 0.3,
                error_message=chance.choice((None, "50% of a_b\\c", "Boom", "boom", "ébène")),
                mode=chance.choice(("normal", "normal", "normal", "test")),
            )
        )
    await session.commit()


async def expected(session: AsyncSession, flow_ids: Sequence[UUID], wanted: ExecutionFilter) -> list[Any]:
    """The executions that match the filters apart from a search, by a plain statement and a filter in Python."""
    e = ExecutionRecord.__table__.c
    names = ("id", "flow_id", "status", "trigger_type", "trigger_id", "started_at", "duration_ms", "error_message")
    rows = await session.execute(
        sa.select(*(e[name] for name in names), e.filtered)
        .where(e.flow_id.in_(flow_ids), e.mode == "normal")
        .order_by(e.started_at.desc(), e.id.desc())
    )
    return [row for row in rows if matches(row, wanted)]


def searched(rows: list[Any], wanted: ExecutionFilter) -> list[Any]:
    if wanted.error_text is None:
        return rows
    return [row for row in rows[:SMALL] if wanted.error_text in (row.error_message or "")]


def matches(row: Any, wanted: ExecutionFilter) -> bool:
    return all(
        (
            not wanted.statuses or row.status in wanted.statuses,
            not wanted.trigger_types or row.trigger_type in wanted.trigger_types,
            not wanted.flow_ids or row.flow_id in wanted.flow_ids,
            wanted.trigger_id in (None, row.trigger_id),
            wanted.started_after is None or row.started_at >= wanted.started_after,
            wanted.started_before is None or row.started_at < wanted.started_before,
            wanted.min_duration_ms is None or (row.duration_ms or -1) >= wanted.min_duration_ms,
            wanted.has_error in (None, row.error_message is not None),
            wanted.filtered in (None, row.filtered),
        )
    )


def random_filter(chance: Random, trigger_id: UUID, flow_ids: Sequence[UUID]) -> ExecutionFilter:
    def sometimes(value: Any, otherwise: Any = None) -> Any:
        return value if chance.random() < 0.25 else otherwise

    return ExecutionFilter(
        statuses=sometimes(tuple(sorted(chance.sample(list(S), chance.randint(1, 5)))), ()),
        trigger_types=sometimes(tuple(sorted(chance.sample(list(T), chance.randint(1, 3)))), ()),
        flow_ids=sometimes(tuple(chance.sample(flow_ids, 2)), ()) if len(flow_ids) > 1 else (),
        trigger_id=sometimes(trigger_id),
        started_after=sometimes(NOON + timedelta(minutes=chance.randrange(60))),
        started_before=sometimes(NOON + timedelta(minutes=chance.randrange(300))),
        min_duration_ms=sometimes(chance.randrange(100)),
        has_error=sometimes(chance.random() < 0.5),
        filtered=sometimes(chance.random() < 0.5),
        error_text=sometimes(chance.choice(("b", "%", "_b\\", "é", "BOOM"))),
    )


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits that lists of a few hundred executions reach."""

    def forget_statements() -> None:
        execution_pages.flow_page.cache_clear()
        execution_pages.user_page.cache_clear()

    monkeypatch.setattr(execution_lists, "MIN_SERIES_OFFSET", 20)
    for module, name in (
        (execution_filters, "SEARCHED"),
        (execution_pages, "SEARCHED"),
        (execution_lists, "SEARCHED"),
        (execution_pages, "MAX_COUNT"),
        (execution_lists, "MAX_COUNT"),
    ):
        monkeypatch.setattr(module, name, SMALL)
    forget_statements()
    yield
    forget_statements()


def reads(session: AsyncSession, user: UserRecord, flow: FlowRecord) -> tuple[Read, Read]:
    """Functions that read a list: of one flow, and of all flows."""

    async def of_flow(request: ListRequest) -> ExecutionList:
        return await read_executions(session, requester(user), flow.id, request)

    async def of_user(request: ListRequest) -> ExecutionList:
        return await read_all_executions(session, requester(user), request)

    return of_flow, of_user


@pytest.mark.usefixtures("small_limits")
async def test_pages_and_cursors_return_each_matching_execution_once_and_in_order(
    session: AsyncSession, user: UserRecord
) -> None:
    chance = Random(11)  # noqa: S311
    flows = [await create_flow(session, user) for _ in range(4)]
    deleted = await create_flow(session, user, deleted_at=NOON)
    foreign = await create_flow(session, await create_user(session))
    await insert(session, [*flows, deleted, foreign], 250, chance)
    trigger_id = await session.scalar(sa.select(TriggerRecord.id))
    assert trigger_id is not None
    flow_ids = [flow.id for flow in flows]
    for number in range(30):
        for ids_of_list, read in zip((flow_ids[:1], flow_ids), reads(session, user, flows[0]), strict=True):
            wanted = random_filter(chance, trigger_id, ids_of_list) if number else NO_FILTER
            matching = await expected(session, ids_of_list, wanted)
            rows = searched(matching, wanted)
            await check_pages(read, wanted, rows, size=chance.randint(5, 60))
            found = await read(page(1, 10, wanted))
            is_maintained, is_search = wanted.shape.has_maintained_total, wanted.error_text is not None
            assert found.total_is_exact is (is_maintained or len(matching) <= SMALL), wanted
            assert found.total == (len(rows) if is_maintained or is_search else min(len(rows), SMALL)), wanted


async def check_pages(read: Read, wanted: ExecutionFilter, rows: list[Any], size: int) -> None:
    """Compare the rows with all pages by number, and with all pages by cursor. A cursor can be used on any page."""
    by_number: list[UUID] = []
    by_cursor: list[UUID] = []
    number, cursor = 1, None
    while True:
        found, same = await read(page(number, size, wanted)), await read(after(cursor, size, wanted))
        by_number += ids(found)
        by_cursor += ids(same)
        assert (found.has_more, found.next_cursor) == (same.has_more, same.next_cursor)
        assert found.has_more is (found.next_cursor is not None) is (number * size < len(rows))
        assert (found.page, found.page_size, same.page) == (number, size, 1)
        if not found.has_more:
            break
        number, cursor = number + 1, found.next_cursor
    assert by_number == by_cursor == [row.id for row in rows], wanted
    past = await read(page(number + 1, size, wanted))
    assert (past.items, past.has_more, past.next_cursor) == ([], False, None)


async def test_item_is_the_summary_of_the_execution(session: AsyncSession, user: UserRecord, flow: FlowRecord) -> None:
    flow.name = 'Ä "name"\n with\tcontrols \u2028'
    rows = [
        await create_execution(session, flow, started_at=NOON + timedelta(microseconds=1), duration_ms=None),
        await create_execution(session, flow, started_at=NOON, duration_ms=2**53 + 1, status=S.SUCCESS),
    ]
    for read in reads(session, user, flow):
        items = [json.loads(item) for item in (await read(page(1, 5))).items]
        for item, row in zip(items, rows, strict=True):
            is_of_user = item.keys() >= {"flowId", "flowName"}
            model = FlowExecutionSummary if is_of_user else ExecutionSummary
            values = vars(row) | {"flow_name": flow.name, "cost_usd": 0}
            assert item == model.model_validate(values).model_dump(mode="json", by_alias=True)
    assert list(items[0]) == [*ExecutionSummary.model_json_schema()["properties"], "flowId", "flowName"]


async def test_time_with_fewer_digits_is_completed(session: AsyncSession, user: UserRecord, flow: FlowRecord) -> None:
    await create_execution(session, flow)
    for text in ("2024-05-01 12:00:00", "2024-05-01 12:00:00.120000"):
        await session.execute(sa.text(f"UPDATE executions SET started_at = '{text}'"))  # noqa: S608
        (item,) = (await read_executions(session, requester(user), flow.id, page(1, 5))).items
        assert json.loads(item)["startedAt"] == text.replace(" ", "T").ljust(20, ".").ljust(26, "0") + "Z"


async def test_unknown_status_is_listed_and_counted(session: AsyncSession, user: UserRecord, flow: FlowRecord) -> None:
    for _ in range(3):
        await create_execution(session, flow)
    await session.execute(sa.text("UPDATE executions SET status = 'lost'"))
    for number in (1, 2, 3):
        found = await read_executions(session, requester(user), flow.id, page(number, 1))
        assert (json.loads(found.items[0])["status"], found.total, found.has_more) == ("lost", 3, number < 3)


async def test_new_executions_neither_repeat_nor_hide_rows_of_the_next_page(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    rows = [await create_execution(session, flow, started_at=NOON - timedelta(seconds=age)) for age in range(6)]
    for read in reads(session, user, flow):
        found, seen = await read(page(1, 2)), []
        while True:
            seen += ids(found)
            await create_execution(session, flow, started_at=NOON + timedelta(days=1))
            if found.next_cursor is None:
                break
            found = await read(after(found.next_cursor, 2))
        assert [one for one in seen if one in {row.id for row in rows}] == [row.id for row in rows]
        assert len(set(seen)) == len(seen)


async def test_cursor_of_another_list_is_rejected(session: AsyncSession, user: UserRecord, flow: FlowRecord) -> None:
    for _ in range(2):
        await create_execution(session, flow, status=S.ERROR)
    other_flow = await create_flow(session, user)
    of_flow, of_user = reads(session, user, flow)
    wanted = ExecutionFilter(statuses=(S.ERROR,))
    cursor, of_all = [(await read(page(1, 1, wanted))).next_cursor for read in (of_flow, of_user)]
    assert len((await of_flow(after(cursor, 1, wanted))).items) == 1
    for read, request in (
        (of_flow, after(cursor, 1)),
        (of_flow, after(cursor, 1, ExecutionFilter(statuses=(S.ERROR, S.TIMEOUT)))),
        (of_user, after(cursor, 1, wanted)),
        (of_user, after(of_all, 1)),
        (of_flow, after(of_all, 1, wanted)),
        (reads(session, user, other_flow)[0], after(cursor, 1, wanted)),
    ):
        with pytest.raises(BadRequest) as error:
            await read(request)
        assert error.value.code == "invalid_cursor"


async def test_page_that_cannot_be_located_is_rejected(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    of_flow, of_user = reads(session, user, flow)
    assert (await of_flow(page(10**9, 1000, ExecutionFilter(statuses=(S.ERROR, S.SUCCESS))))).items == []
    filtered = ExecutionFilter(has_error=True)
    for read, request in ((of_flow, page(12, 1000, filtered)), (of_user, page(12, 1000)), (of_flow, after("x", 5))):
        assert (await read(page(11, 1000, request.filter))).items == []
        request = request if request.cursor is None else ListRequest(NO_FILTER, PageRequest(2, 5), "x")
        with pytest.raises(Unprocessable) as error:
            await read(request)
        assert "ursor" in (error.value.details or {})["query.page"]


async def test_requester_is_confirmed_before_a_flow_is_not_found(session: AsyncSession, flow: FlowRecord) -> None:
    await create_execution(session, flow)
    other = requester(await create_user(session))
    with pytest.raises(NotFound) as error:
        await read_executions(session, other, flow.id, page(1, 5))
    assert (error.value.code, other.confirmed) == ("flow_not_found", [other.id])
    stranger = RecordedRequester(uuid4())
    assert (await read_all_executions(session, stranger, page(1, 5))).total == 0
    assert stranger.confirmed == [None]


@pytest.mark.usefixtures("small_limits")
async def test_every_list_is_read_with_one_statement(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, database_engine: AsyncEngine
) -> None:
    for _ in range(3):
        await create_execution(session, flow)
    filters = (NO_FILTER, ExecutionFilter(statuses=(S.RUNNING, S.ERROR)), ExecutionFilter(error_text="x"))
    for read in reads(session, user, flow):
        for wanted in filters:
            cursor = (await read(page(1, 1, wanted))).next_cursor
            for request in (page(1, 1, wanted), page(30, 1, wanted), after(cursor, 1, wanted)):
                with count_statements(database_engine) as statements:
                    await read(request)
                assert len(statements) == 1
                assert "payload" not in statements[0]


@pytest.mark.usefixtures("small_limits")
async def test_total_is_exact_up_to_the_number_of_rows_that_are_counted(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    wanted = ExecutionFilter(has_error=False)
    for rows, total in ((SMALL, SMALL), (1, SMALL)):
        session.add_all(ExecutionRecord(flow_id=flow.id, trigger_type=T.MANUAL) for _ in range(rows))
        await session.commit()
        for read in reads(session, user, flow):
            found = await read(page(1, 1, wanted))
            assert (found.total, found.total_is_exact) == (total, rows == SMALL)


async def test_filter_by_a_deleted_trigger_finds_nothing(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    trigger = await create_trigger(session, flow)
    await create_execution(session, flow, trigger_id=trigger.id)
    request = page(1, 5, ExecutionFilter(trigger_id=trigger.id))
    assert (await read_executions(session, requester(user), flow.id, request)).total == 1
    trigger.deleted_at = NOON
    await session.commit()
    assert (await read_executions(session, requester(user), flow.id, request)).total == 0
