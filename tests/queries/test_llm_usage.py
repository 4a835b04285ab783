"""The usage of language models in groups."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.tables import LlmCallRecord
from bloxserver.queries.llm_usage import GroupBy, read_llm_usage
from tests.api.contract import API
from tests.factories import create_flow, create_user

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def owner(live_database: Database) -> tuple[UUID, UUID]:
    """A user with calls, and their flow."""
    async with live_database.transaction() as session:
        user, other = await create_user(session), await create_user(session, clerk_id="o", email="o@example.com")
        flow = await create_flow(session, user, name="Guard")
        calls: list[dict[str, Any]] = [
            {"model": "a", "flow_id": flow.id, "created_at": START, "cost_nanousd": 1_000_000_000},
            {"model": "a", "flow_id": flow.id, "created_at": START + DAY, "cost_nanousd": 500_000_000, "cached": True},
            {"model": "b", "flow_id": None, "created_at": START + DAY * 1.5, "error_code": "llm_timeout"},
            {"model": "b", "flow_id": uuid4(), "created_at": START + 2 * DAY, "cost_nanousd": 2_000_000_000},
        ]
        common = {"provider": "p", "input_tokens": 10, "output_tokens": 5, "cached": False}
        common |= {"error_code": None, "cost_nanousd": None}
        rows = [common | call | {"id": uuid4(), "user_id": user.id} for call in calls]
        rows.append(common | calls[0] | {"id": uuid4(), "user_id": other.id})
        await session.execute(sa.insert(LlmCallRecord), rows)
    return user.id, flow.id


async def groups(database: Database, user_id: UUID, by: GroupBy, end: datetime = START + 2 * DAY) -> list[Any]:
    async with database.transaction(read_only=True) as session:
        found = await read_llm_usage(session, user_id, by, START, end)
    return [
        (each.key, each.calls, each.failed_calls, each.cached_calls, each.input_tokens, each.cost_usd) for each in found
    ]


async def test_calls_in_the_range_are_summed(live_database: Database, owner: tuple[UUID, UUID]) -> None:
    user_id, flow_id = owner
    assert await groups(live_database, user_id, GroupBy.MODEL) == [("a", 2, 0, 1, 20, 1.5), ("b", 1, 1, 0, 10, 0)]
    assert await groups(live_database, user_id, GroupBy.PROVIDER) == [("p", 3, 1, 1, 30, 1.5)]
    assert await groups(live_database, user_id, GroupBy.DAY) == [
        ("2026-03-01", 1, 0, 0, 10, 1),
        ("2026-03-02", 2, 1, 1, 20, 0.5),
    ]
    assert await groups(live_database, user_id, GroupBy.FLOW) == [
        (str(flow_id), 2, 0, 1, 20, 1.5),
        (None, 1, 1, 0, 10, 0),
    ]
    later = await groups(live_database, user_id, GroupBy.MODEL, START + 3 * DAY)
    assert later == [("b", 2, 1, 0, 20, 2), ("a", 2, 0, 1, 20, 1.5)], "by cost"


async def test_groups_of_flows_have_their_names(live_database: Database, owner: tuple[UUID, UUID]) -> None:
    async with live_database.transaction(read_only=True) as session:
        found = await read_llm_usage(session, owner[0], GroupBy.FLOW, START, START + 3 * DAY)
    assert [each.name for each in found] == [None, "Guard", None]


async def test_route_returns_groups(client: httpx.AsyncClient) -> None:
    response = await client.get(f"{API}/llm/usage", params={"group_by": "day", "from": "2026-03-01"})
    assert (response.status_code, response.json()) == (200, {"groupBy": "day", "groups": []})
    assert (await client.get(f"{API}/llm/usage")).json()["groupBy"] == "model"


@pytest.mark.parametrize("query", [{"group_by": "user"}, {"from": "yesterday"}, {"to": "1"}])
async def test_invalid_query_is_refused(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    assert (await client.get(f"{API}/llm/usage", params=query)).status_code == 422
