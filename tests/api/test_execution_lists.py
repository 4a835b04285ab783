"""Cursors and filters of lists of executions, and the list over all flows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import ExecutionStatus, FlowRecord, TriggerType, UserRecord
from tests import factories
from tests.api.contract import API, assert_invalid, assert_problem, covers, path_of

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
ALL = f"{API}/executions"


@pytest.fixture
async def flow(session: AsyncSession, dev_user: UserRecord) -> FlowRecord:
    return await factories.create_flow(session, dev_user)


@pytest.fixture
async def ages(session: AsyncSession, flow: FlowRecord) -> dict[str, int]:
    """The ages in minutes of the flow's executions, by id."""
    rows: list[dict[str, Any]] = [
        {"status": ExecutionStatus.SUCCESS, "duration_ms": 5, "filtered": True},
        {"status": ExecutionStatus.ERROR, "duration_ms": 50, "error_message": "100% of a_b failed"},
        {"status": ExecutionStatus.TIMEOUT, "trigger_type": TriggerType.SCHEDULE, "error_message": "too slow"},
        {"status": ExecutionStatus.RUNNING, "trigger_type": TriggerType.WEBHOOK},
    ]
    found = {}
    for age, values in enumerate(rows):
        at = NOON - timedelta(minutes=age)
        execution = await factories.create_execution(session, flow, started_at=at, **values)
        found[str(execution.id)] = age
    return found


async def listed(client: httpx.AsyncClient, path: str, ages: dict[str, int], **params: Any) -> list[int]:
    response = await client.get(path, params=params)
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["total"], body["totalIsExact"]) == (len(body["items"]), True)
    return [ages[item["id"]] for item in body["items"]]


@covers("executions.list.filters", "executions.list-all")
async def test_filters_select_executions(client: httpx.AsyncClient, flow: FlowRecord, ages: dict[str, int]) -> None:
    for path in (f"{path_of(flow)}/executions", ALL):
        assert await listed(client, path, ages) == [0, 1, 2, 3]
        assert await listed(client, path, ages, status_filter=["error", "timeout", "error"]) == [1, 2]
        assert await listed(client, path, ages, trigger_type=["schedule", "webhook"]) == [2, 3]
        assert await listed(client, path, ages, trigger_id=str(uuid4())) == []
        assert await listed(client, path, ages, started_after="2024-05-01T11:59:00Z") == [0, 1]
        assert await listed(client, path, ages, started_after="2024-05-01T11:59:00") == [0, 1]
        assert await listed(client, path, ages, started_before="2024-05-01T13:59:00+02:00") == [2, 3]
        assert await listed(client, path, ages, min_duration_ms=6) == [1]
        assert await listed(client, path, ages, has_error="true") == [1, 2]
        assert await listed(client, path, ages, has_error="false") == [0, 3]
        assert await listed(client, path, ages, filtered="true") == [0]
        assert await listed(client, path, ages, filtered="false") == [1, 2, 3]
        for text, found in (("0%", [1]), ("a_b", [1]), ("%", [1]), ("slow", [2]), ("Slow", []), ("%of", [])):
            assert await listed(client, path, ages, q=text) == found
        assert await listed(client, path, ages, has_error="true", status_filter="error", min_duration_ms=50) == [1]


@covers("executions.list.cursor")
async def test_next_cursor_leads_to_the_last_page(
    client: httpx.AsyncClient, flow: FlowRecord, ages: dict[str, int]
) -> None:
    for path in (f"{path_of(flow)}/executions", ALL):
        params: dict[str, Any] = {"page_size": 3, "page": 1}
        first = (await client.get(path, params=params)).json()
        last = (await client.get(path, params=params | {"cursor": first["nextCursor"]})).json()
        assert [ages[item["id"]] for item in first["items"] + last["items"]] == [0, 1, 2, 3]
        assert (last["hasMore"], last["nextCursor"], last["page"], last["total"]) == (False, None, 1, 4)
        # A cursor does not depend on the size of the page.
        rest = (await client.get(path, params={"page_size": 1, "cursor": first["nextCursor"]})).json()
        assert ([ages[item["id"]] for item in rest["items"]], rest["hasMore"]) == ([3], False)


@covers("executions.list.cursor.invalid")
@pytest.mark.parametrize("cursor", ["", "x", "é", "\0", "A" * 44, "=" * 100, "A" * 10_000, "💥"])
async def test_invalid_cursor_is_rejected(client: httpx.AsyncClient, flow: FlowRecord, cursor: str) -> None:
    for path in (f"{path_of(flow)}/executions", ALL):
        response = await client.get(path, params={"cursor": cursor})
        assert_problem(response, 400, "invalid_cursor", "The cursor is not one of this list with these filters")


async def test_cursor_with_other_filters_is_rejected(
    client: httpx.AsyncClient, flow: FlowRecord, ages: dict[str, int]
) -> None:
    path = f"{path_of(flow)}/executions"
    cursor = (await client.get(path, params={"page_size": 1})).json()["nextCursor"]
    for other, params in ((path, {"q": "x"}), (path, {"status_filter": "error"}), (ALL, {})):
        response = await client.get(other, params={"cursor": cursor, **params})
        assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")
    assert_invalid(await client.get(path, params={"cursor": cursor, "page": 2}), "query.page")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("status_filter", ["", "SUCCESS"]),
        ("trigger_type", ["", "cron"]),
        ("trigger_id", ["", "7", "\0"]),
        ("started_after", ["", "1714564800", "noon", "2024-05-01T25:00:00Z", "9999-12-31T23:59:59-01:00", "\0"]),
        ("started_before", ["0001-01-01T00:00:00+01:00", "2024-05-01T12:00:00+00:99"]),
        ("min_duration_ms", ["-1", "1.5", str(2**63), ""]),
        ("has_error", ["", "2", "maybe"]),
        ("filtered", ["", "2", "maybe"]),
        ("q", ["", "a\0b", "x" * 1001]),
    ],
)
async def test_invalid_filter_is_rejected(
    client: httpx.AsyncClient, flow: FlowRecord, name: str, values: list[str]
) -> None:
    for value in values:
        for path in (f"{path_of(flow)}/executions", ALL):
            assert_invalid(await client.get(path, params={name: value}), f"query.{name}")


async def test_several_invalid_values_of_a_parameter_have_one_reason(
    client: httpx.AsyncClient, flow: FlowRecord
) -> None:
    path = f"{path_of(flow)}/executions?status_filter=x&status_filter=error&status_filter=y"
    assert_invalid(await client.get(path), "query.status_filter")


async def test_lone_surrogate_in_a_search_is_rejected_or_finds_nothing(
    client: httpx.AsyncClient, flow: FlowRecord
) -> None:
    for text in ("%ED%A0%80", "%FF"):
        response = await client.get(f"{path_of(flow)}/executions?q={text}")
        assert response.status_code in {200, 422}


@covers("executions.list.deep")
async def test_page_far_behind_with_other_filters_is_rejected(client: httpx.AsyncClient, flow: FlowRecord) -> None:
    path = f"{path_of(flow)}/executions"
    for params in ({}, {"status_filter": ["error", "timeout"]}):
        assert (await client.get(path, params={"page": 10**9, "page_size": 1000, **params})).json()["items"] == []
    assert_invalid(await client.get(path, params={"page": 202, "has_error": True}), "query.page")
    assert_invalid(await client.get(ALL, params={"page": 202}), "query.page")


@covers("executions.list-all")
async def test_list_over_all_flows_names_the_flow_and_can_be_limited_to_flows(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    flows = [await factories.create_flow(session, dev_user, name=f'"{name}"') for name in "AB"]
    foreign = await factories.create_flow(session, await factories.create_user(session))
    for number, flow in enumerate([*flows, foreign]):
        await factories.create_execution(session, flow, started_at=NOON + timedelta(hours=number))
    body = (await client.get(ALL)).json()
    names = [(item["flowId"], item["flowName"]) for item in body["items"]]
    assert names == [(str(flows[1].id), '"B"'), (str(flows[0].id), '"A"')]
    assert (body["total"], body["hasMore"], body["pageSize"]) == (2, False, 50)
    assert body["items"][0].keys() >= {"id", "status", "triggerType", "startedAt", "durationMs"}
    for flow_ids, found in (([flows[0]], 1), ([flows[0], flows[0]], 1), (flows, 2), ([foreign], 0)):
        body = (await client.get(ALL, params={"flow_id": [str(flow.id) for flow in flow_ids]})).json()
        assert (len(body["items"]), body["total"]) == (found, found)
    assert_invalid(await client.get(ALL, params={"flow_id": "x"}), "query.flow_id")
    assert_invalid(await client.get(ALL, params={"flow_id": [str(uuid4())] * 101}), "query.flow_id")


async def test_list_over_all_flows_is_empty_for_a_new_user(client: httpx.AsyncClient) -> None:
    body = (await client.get(ALL)).json()
    assert (body["items"], body["total"], body["nextCursor"]) == ([], 0, None)


async def test_executions_of_another_mode_are_left_out(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
) -> None:
    await factories.create_execution(session, flow, mode="test")
    for path in (f"{path_of(flow)}/executions", ALL):
        assert (await client.get(path)).json()["total"] == 0
    assert (await client.get(f"{path_of(flow)}/executions/stats")).json()["executionsTotal"] == 0
