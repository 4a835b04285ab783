"""`GET /usage/flows`: what each flow used."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import FlowRecord, Tier, UsageRecord, UserRecord
from tests.api.contract import API, assert_problem, covers
from tests.factories import create_execution, create_flow

USAGE = f"{API}/usage/flows"


async def create_flows(client: httpx.AsyncClient, database: Database, number: int) -> list[FlowRecord]:
    """Running flows of the user of the client."""
    await client.get(f"{API}/me")
    async with database.sessions() as session:
        await session.execute(sa.update(UserRecord).values(tier=Tier.PRO))
        user = (await session.scalars(sa.select(UserRecord))).one()
        return [await create_flow(session, user, name=f"Flow {index}") for index in range(number)]


def runs(page: dict[str, Any]) -> dict[str, int]:
    return {item["flowName"]: item["runs"] for item in page["items"]}


@covers("usage.flows")
async def test_sum_of_the_flows_is_the_number_of_runs(live_client: httpx.AsyncClient, live_database: Database) -> None:
    flows = await create_flows(live_client, live_database, 3)
    for flow, count in zip(flows, (1, 3, 0), strict=True):
        for _ in range(count):
            assert (await live_client.post(f"{API}/flows/{flow.id}/executions/run")).status_code == 201
    usage, page = (await live_client.get(f"{API}/usage")).json(), (await live_client.get(USAGE)).json()
    assert page["items"][0] == {
        "flowId": str(flows[1].id),
        "flowName": "Flow 1",
        "runs": 3,
        "inputTokens": 0,
        "outputTokens": 0,
    }
    assert (page["periodStart"], page["periodEnd"]) == (usage["periodStart"], usage["periodEnd"])
    assert sum(runs(page).values()) == usage["runsUsed"] == 4
    await live_client.delete(f"{API}/flows/{flows[1].id}")
    assert runs((await live_client.get(USAGE)).json()) == {"Flow 0": 1}
    assert (await live_client.get(f"{API}/usage")).json()["runsUsed"] == 4


async def test_pages_and_times(live_client: httpx.AsyncClient, live_database: Database) -> None:
    flows = await create_flows(live_client, live_database, 2)
    start = datetime(2026, 2, 10, 12, tzinfo=UTC)
    async with live_database.sessions() as session:
        for flow, hours in ((flows[0], 0), (flows[0], 1), (flows[1], 2)):
            await create_execution(session, flow, started_at=start + timedelta(hours=hours))
    query = {"from": "2026-02-10T12:00:00Z", "to": "2026-02-10T14:00:00Z", "limit": "1"}
    assert runs((await live_client.get(USAGE, params=query)).json()) == {"Flow 0": 2}
    query["to"] = "2026-02-10T14:01:00Z"
    first = (await live_client.get(USAGE, params=query)).json()
    second = (await live_client.get(USAGE, params={**query, "cursor": first["nextCursor"]})).json()
    assert (runs(first), runs(second), second["nextCursor"]) == ({"Flow 0": 2}, {"Flow 1": 1}, None)
    query["to"] = query["from"]
    refused = await live_client.get(USAGE, params=query)
    details = {"query.to": "Must be a later minute than from"}
    assert_problem(refused, 422, "validation_error", "Request validation failed", details)


async def test_previous_period(live_client: httpx.AsyncClient, live_database: Database) -> None:
    (flow,) = await create_flows(live_client, live_database, 1)
    start, end = (datetime(2026, month, 5, 8, 30, 20, tzinfo=UTC) for month in (1, 2))
    async with live_database.sessions() as session:
        session.add(UsageRecord(user_id=flow.user_id, period_start=start, period_end=end, workflow_runs=1))
        await create_execution(session, flow, started_at=start)
        await create_execution(session, flow, started_at=end)
        await create_execution(session, flow, started_at=now())
    page = (await live_client.get(USAGE, params={"period": "previous"})).json()
    assert (page["periodStart"], page["periodEnd"]) == ("2026-01-05T08:30:00.000000Z", "2026-02-05T08:30:00.000000Z")
    assert runs(page) == {"Flow 0": 1}


@pytest.mark.parametrize("query", ["period=next", "limit=0", "limit=101", "from=yesterday", "cursor=x", "to=5"])
async def test_invalid_queries_are_refused(live_client: httpx.AsyncClient, query: str) -> None:
    assert (await live_client.get(f"{USAGE}?{query}")).status_code == (400 if query == "cursor=x" else 422)
