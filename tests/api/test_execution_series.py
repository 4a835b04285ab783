"""`GET …/executions/stats/series`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import ExecutionStatus, FlowRecord, UserRecord
from tests import factories
from tests.api.contract import API, assert_invalid, assert_problem, covers, path_of

SPRING = datetime(2024, 3, 31, tzinfo=UTC)


@pytest.fixture
async def flow(session: AsyncSession, dev_user: UserRecord) -> FlowRecord:
    return await factories.create_flow(session, dev_user)


@covers("executions.stats.series")
async def test_days_of_a_time_zone_have_the_executions_that_started_in_them(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
) -> None:
    for hours, duration_ms in ((-1.5, 7), (-0.5, 10), (21.5, 20), (22.5, None)):
        await factories.create_execution(
            session,
            flow,
            started_at=SPRING + timedelta(hours=hours),
            status=ExecutionStatus.SUCCESS,
            duration_ms=duration_ms,
            input_tokens=3,
        )
    params = {"bucket": "day", "tz": "Europe/Berlin", "from": "2024-03-31T00:00:00Z", "to": "2024-04-02T22:00:00Z"}
    response = await client.get(f"{path_of(flow)}/executions/stats/series", params=params)
    body = response.json()
    assert (response.status_code, body["flowId"], body["bucket"], body["tz"]) == (
        200,
        str(flow.id),
        "day",
        "Europe/Berlin",
    )
    empty = {"error": 0, "timeout": 0, "cancelled": 0, "running": 0, "outputTokens": 0}
    assert body["buckets"] == [
        {
            "start": "2024-03-30T23:00:00.000000Z",
            "end": "2024-03-31T22:00:00.000000Z",
            "executions": 2,
            "success": 2,
            "avgDurationMs": 15,
            "inputTokens": 6,
            **empty,
        },
        {
            "start": "2024-03-31T22:00:00.000000Z",
            "end": "2024-04-01T22:00:00.000000Z",
            "executions": 1,
            "success": 1,
            "avgDurationMs": 0,
            "inputTokens": 3,
            **empty,
        },
        {
            "start": "2024-04-01T22:00:00.000000Z",
            "end": "2024-04-02T22:00:00.000000Z",
            "executions": 0,
            "success": 0,
            "avgDurationMs": 0,
            "inputTokens": 0,
            **empty,
        },
    ]


@pytest.mark.parametrize(("bucket", "count"), [("minute", 60), ("hour", 24), ("day", 30)])
async def test_new_execution_is_in_the_last_bucket(
    client: httpx.AsyncClient, flow: FlowRecord, bucket: str, count: int
) -> None:
    assert (await client.post(f"{path_of(flow)}/executions/run")).status_code == 201
    path = f"{path_of(flow)}/executions/stats/series"
    buckets = (await client.get(path, params={"bucket": bucket})).json()["buckets"]
    assert len(buckets) == count
    assert sum(one["running"] for one in buckets[-2:]) == sum(one["executions"] for one in buckets) == 1


@covers("executions.stats.series.invalid")
async def test_invalid_parameters_are_rejected(client: httpx.AsyncClient, flow: FlowRecord) -> None:
    path = f"{path_of(flow)}/executions/stats/series"
    for params, name in (
        ({"bucket": "week"}, "bucket"),
        ({"tz": "Mars/Olympus"}, "tz"),
        ({"tz": ""}, "tz"),
        ({"tz": "../UTC"}, "tz"),
        ({"tz": "Europe"}, "tz"),
        ({"tz": "a\0"}, "tz"),
        ({"tz": "x" * 5000}, "tz"),
        ({"from": "yesterday"}, "from"),
        ({"to": "1714564800"}, "to"),
        ({"from": "2024-05-02T00:00:00Z", "to": "2024-05-01T00:00:00Z"}, "to"),
        ({"from": "2024-01-01", "to": "2024-05-01"}, "from"),
        ({"from": "2024-01-01T00:00:00Z"}, "from"),
    ):
        assert_invalid(await client.get(path, params=params), f"query.{name}")


async def test_series_of_an_unknown_flow_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.get(f"{API}/flows/{uuid4()}/executions/stats/series")
    assert_problem(response, 404, "flow_not_found", "Flow not found")
