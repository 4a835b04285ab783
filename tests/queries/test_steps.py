"""Reads of steps."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import ExecutionRecord, FlowRecord, UserRecord
from bloxserver.queries.paging import PageRequest
from bloxserver.queries.steps import (
    ENDED,
    MAX_PAYLOAD_BYTES,
    WAITING,
    StepLink,
    StepPosition,
    read_step_changes,
    read_step_links,
    read_steps,
)
from tests.factories import create_execution, create_flow, create_user
from tests.steps import create_step

SECOND = timedelta(seconds=1)
PAGE = PageRequest(1, 10)
BEGINNING = StepPosition(0, UUID(int=0))


@pytest.fixture
async def execution(session: AsyncSession, flow: FlowRecord) -> ExecutionRecord:
    return await create_execution(session, flow)


async def test_steps_are_listed_in_pages_from_the_oldest_with_payloads(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, execution: ExecutionRecord
) -> None:
    moment = now()
    await create_step(session, execution, "second", started_at=moment - 2 * SECOND)
    await create_step(session, execution, "third", started_at=moment - SECOND)
    await create_step(
        session, execution, "first", started_at=moment - 3 * SECOND, input_payload="in", output_payload="out"
    )
    await create_step(session, await create_execution(session, flow), "other")
    first = await read_steps(session, user.id, flow.id, execution.id, PageRequest(1, 2))
    second = await read_steps(session, user.id, flow.id, execution.id, PageRequest(2, 2))
    assert [row.listener for row in first.items] == ["first", "second"]
    assert [row.listener for row in second.items] == ["third"]
    assert (first.total, first.has_more, second.has_more) == (3, True, False)
    assert (first.items[0].input_payload, first.items[0].output_payload) == ("in", "out")


async def test_payloads_beyond_the_limit_of_a_page_are_left_out(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, execution: ExecutionRecord
) -> None:
    moment, half = now(), "x" * (MAX_PAYLOAD_BYTES // 2)
    for number, payloads in enumerate([(half, None), (None, half), ("1", None), (half + half, "2"), ("3", "4")]):
        await create_step(
            session,
            execution,
            f"step {number}",
            started_at=moment + number * SECOND,
            input_payload=payloads[0],
            output_payload=payloads[1],
        )

    async def omitted(page: int, page_size: int) -> list[bool]:
        found = await read_steps(session, user.id, flow.id, execution.id, PageRequest(page, page_size))
        for row in found.items:
            payloads = (row.input_payload, row.output_payload)
            assert (payloads == (None, None)) is row.payloads_omitted
        return [row.payloads_omitted for row in found.items]

    assert await omitted(1, 10) == [False, False, True, True, True]
    assert await omitted(2, 3) == [False, True]
    assert await omitted(4, 1) == [False]


async def test_steps_are_found_only_in_their_flow_and_for_its_owner(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, execution: ExecutionRecord
) -> None:
    await create_step(session, execution)
    other, other_flow = await create_user(session), await create_flow(session, user)
    for user_id, flow_id, execution_id in (
        (other.id, flow.id, execution.id),
        (user.id, other_flow.id, execution.id),
        (user.id, flow.id, uuid4()),
    ):
        with pytest.raises(NotFound) as error:
            await read_steps(session, user_id, flow_id, execution_id, PAGE)
        assert (error.value.code, error.value.status) == ("execution_not_found", 404)


async def test_execution_without_steps_has_an_empty_page(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, execution: ExecutionRecord
) -> None:
    page = await read_steps(session, user.id, flow.id, execution.id, PAGE)
    assert (list(page.items), page.total) == ([], 0)


@pytest.mark.parametrize("status", StepStatus)
async def test_completion_time_of_a_waiting_step_is_when_it_resumes(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, execution: ExecutionRecord, status: StepStatus
) -> None:
    moment = now()
    await create_step(session, execution, status=status, completed_at=moment)
    [row] = (await read_steps(session, user.id, flow.id, execution.id, PAGE)).items
    assert row.completed_at == (moment if status in ENDED else None)
    assert row.resumes_at == (moment if status in WAITING else None)


async def test_changes_are_returned_in_the_order_of_their_sequence(
    session: AsyncSession, execution: ExecutionRecord
) -> None:
    for listener, sequence in (("c", 5), ("a", 1), ("b", 3)):
        await create_step(session, execution, listener, sequence=sequence, input_payload="in")
    rows = await read_step_changes(session, execution.id, BEGINNING, 10)
    assert [(row.listener, row.sequence) for row in rows] == [("a", 1), ("b", 3), ("c", 5)]
    assert {"input_payload", "output_payload"}.isdisjoint(rows[0]._mapping.keys())
    assert [row.listener for row in await read_step_changes(session, execution.id, BEGINNING, 2)] == ["a", "b"]


async def test_changes_after_a_position_exclude_the_step_at_the_position(
    session: AsyncSession, execution: ExecutionRecord
) -> None:
    """Steps of one transaction have the same sequence, and the id decides."""
    same = sorted([await create_step(session, execution, name, sequence=2) for name in "ab"], key=lambda step: step.id)
    last = await create_step(session, execution, "c", sequence=3)
    for position, expected in (
        (StepPosition(1, last.id), [*same, last]),
        (StepPosition(2, same[0].id), [same[1], last]),
        (StepPosition(2, same[1].id), [last]),
        (StepPosition(3, last.id), []),
    ):
        rows = await read_step_changes(session, execution.id, position, 10)
        assert [row.id for row in rows] == [step.id for step in expected]


async def test_changes_of_other_executions_are_excluded(
    session: AsyncSession, flow: FlowRecord, execution: ExecutionRecord
) -> None:
    await create_step(session, await create_execution(session, flow), sequence=1)
    assert list(await read_step_changes(session, execution.id, BEGINNING, 10)) == []


async def test_links_name_the_parent_of_each_step_in_the_order_of_changes(
    session: AsyncSession, flow: FlowRecord, execution: ExecutionRecord
) -> None:
    parent = await create_step(session, execution, "a", sequence=2)
    values: dict[str, Any] = {"status": StepStatus.ERROR, "error_code": "odd", "routed_to": ["j"]}
    child = await create_step(session, execution, "b", parent=parent, sequence=1, **values)
    await create_step(session, await create_execution(session, flow))
    assert await read_step_links(session, execution.id) == [
        StepLink(child.id, parent.id, f"{parent.id}:b", "b", StepStatus.ERROR, "odd", ["j"]),
        StepLink(parent.id, None, ":a", "a", StepStatus.SUCCESS, None, None),
    ]
    assert await read_step_links(session, uuid4()) == []
