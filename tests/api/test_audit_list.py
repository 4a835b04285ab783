"""The list of the events of the audit log: pages, filters, and what it hides."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.enums import ActorKind
from bloxserver.models.tables import AuditEventRecord, UserRecord
from tests.api.contract import API, UTC_TIME, assert_problem, covers


async def add_event(session: AsyncSession, user: UserRecord, **values: Any) -> AuditEventRecord:
    defaults = {"actor": ActorKind.USER, "actor_id": str(user.id), "action": "flow.updated", "resource_id": "r"}
    event = AuditEventRecord(user_id=user.id, **defaults | values)
    session.add(event)
    await session.commit()
    return event


async def listed(client: httpx.AsyncClient, **query: Any) -> list[str]:
    """The ids of the events that a list with these parameters contains."""
    response = await client.get(f"{API}/audit", params=query)
    assert response.status_code == 200, response.text
    return [item["id"] for item in response.json()["items"]]


@pytest.fixture
async def reader(dev_user: UserRecord, session: AsyncSession) -> UserRecord:
    """The development user, without events."""
    await session.execute(sa.delete(AuditEventRecord))
    await session.commit()
    return dev_user


@covers("audit.list")
async def test_list_has_the_events_of_the_account_newest_first(
    client: httpx.AsyncClient, session: AsyncSession, reader: UserRecord, user: UserRecord
) -> None:
    flow_id, moment = uuid4(), now()
    values = {"actor": ActorKind.API_KEY, "actor_id": "k", "flow_id": flow_id, "address": "203.0.113.7"}
    values |= {"request_id": "r-1", "before": {"name": "a"}, "after": {"name": "b"}, "created_at": moment}
    event = await add_event(session, reader, **values)
    older = await add_event(session, reader, created_at=moment - timedelta(days=400))
    await add_event(session, user)
    response = (await client.get(f"{API}/audit")).json()
    assert [item["id"] for item in response["items"]] == [str(event.id), str(older.id)]
    assert response["nextCursor"] is None
    item = response["items"][0]
    assert UTC_TIME.fullmatch(item["createdAt"])
    assert datetime.fromisoformat(item["createdAt"]) == moment
    assert item == {
        "id": str(event.id),
        "createdAt": item["createdAt"],
        "actor": "api_key",
        "actorId": "k",
        "action": "flow.updated",
        "resourceId": "r",
        "flowId": str(flow_id),
        "address": "203.0.113.7",
        "requestId": "r-1",
        "before": {"name": "a"},
        "after": {"name": "b"},
    }


async def test_list_hides_names_of_operators_and_shows_actions_of_newer_versions(
    client: httpx.AsyncClient, session: AsyncSession, reader: UserRecord
) -> None:
    await add_event(session, reader, actor=ActorKind.OPERATOR, actor_id="root", action="flow.shared")
    [item] = (await client.get(f"{API}/audit")).json()["items"]
    assert (item["actor"], item["actorId"], item["action"]) == ("operator", None, "flow.shared")


async def test_filters(client: httpx.AsyncClient, session: AsyncSession, reader: UserRecord) -> None:
    moment, flow_id = now(), uuid4()
    first = str((await add_event(session, reader, created_at=moment, resource_id=str(flow_id), flow_id=flow_id)).id)
    later = moment + timedelta(microseconds=1)
    second = str((await add_event(session, reader, created_at=later, actor="api_key", action="flow.started")).id)
    assert await listed(client, action="flow.started") == [second]
    assert await listed(client, action=["flow.started", "flow.updated"]) == [second, first]
    assert await listed(client, action="flow.deleted") == []
    assert await listed(client, actor="api_key") == [second]
    assert await listed(client, actor="operator") == []
    assert await listed(client, resource_id=str(flow_id)) == [first]
    assert await listed(client, flow_id=str(flow_id)) == [first]
    assert await listed(client, since=moment.isoformat()) == [second, first]
    assert await listed(client, since=later.isoformat()) == [second]
    assert await listed(client, until=later.isoformat()) == [first]
    assert await listed(client, until=moment.isoformat()) == []


@covers("audit.cursor")
async def test_pages_have_each_event_once_while_others_are_added(
    client: httpx.AsyncClient, session: AsyncSession, reader: UserRecord
) -> None:
    """All events have the same time: their ids decide."""
    moment = now()
    events = {str((await add_event(session, reader, created_at=moment)).id) for _ in range(7)}
    seen: list[str] = []
    cursor: str | None = None
    for number in range(4):
        query = {"limit": 2} | ({} if cursor is None else {"cursor": cursor})
        page = (await client.get(f"{API}/audit", params=query)).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["nextCursor"]
        assert (cursor is None) == (number == 3)
        await add_event(session, reader, created_at=moment)
        await add_event(session, reader, created_at=moment + timedelta(seconds=1))
    assert seen == sorted(events, reverse=True)
    assert len(await listed(client)) == 15


async def test_cursor_of_other_filters_is_refused(
    client: httpx.AsyncClient, session: AsyncSession, reader: UserRecord
) -> None:
    for _ in range(2):
        await add_event(session, reader)
    cursor = (await client.get(f"{API}/audit", params={"limit": 1})).json()["nextCursor"]
    for query in ({"cursor": cursor, "actor": "user"}, {"cursor": f"{cursor}x"}, {"cursor": ""}, {"cursor": "\0"}):
        refused = await client.get(f"{API}/audit", params=query)
        assert_problem(refused, 400, "invalid_cursor", "The cursor is not one of this list with these filters")


HOSTILE = [
    "action=flow.unknown",
    "action=",
    "action=flow.updated%00",
    "actor=root",
    "actor=",
    "resource_id=",
    "resource_id=%00",
    f"resource_id={'x' * 1_001}",
    "flow_id=x",
    "since=0001-01-01T00:00:00%2B01:00",
    "until=9999-12-31T23:59:59-01:00",
    "since=yesterday",
    "since=1",
    "until=%ED%A0%80",
    "limit=0",
    "limit=101",
    "limit=99999999999999999999",
    "limit=x",
]


@pytest.mark.parametrize("query", HOSTILE)
async def test_invalid_filter_is_refused(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"{API}/audit?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "validation_error"), response.text


async def test_unusual_filters_find_nothing(client: httpx.AsyncClient, reader: UserRecord) -> None:
    for query in ("resource_id=%ED%A0%80", f"resource_id={'x' * 1_000}", "since=9999-12-31T23:59:59.999999Z"):
        assert (await client.get(f"{API}/audit?{query}")).json() == {"items": [], "nextCursor": None}
    assert (await client.get(f"{API}/audit?until=0001-01-01T00:00:00Z")).status_code == 200
