"""Entity tags of flows: two clients cannot overwrite each other's changes."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.main import app
from bloxserver.models.database import Database
from bloxserver.models.tables import FlowRecord, FlowStatus, UserRecord
from tests.api.contract import API, covers
from tests.database_override import override_database
from tests.factories import create_flow, create_user

CANVAS = {"nodes": [{"id": "a", "position": {"x": 1, "y": 2.5}, "data": {"ü": None}}], "edges": []}
LARGE = {"nodes": [{"id": f"n{number}", "position": {"x": number, "y": 0}} for number in range(1_500)], "edges": []}


def path_of(flow: FlowRecord) -> str:
    return f"{API}/flows/{flow.id}"


async def etag(client: httpx.AsyncClient, path: str) -> str:
    return (await client.get(path)).headers["ETag"]


@covers("flows.etag")
async def test_every_response_with_a_flow_has_its_tag(client: httpx.AsyncClient, dev_user: UserRecord) -> None:
    created = await client.post(f"{API}/flows", json={"name": "x"})
    path = f"{API}/flows/{created.json()['id']}"
    tag = await etag(client, path)
    assert tag.startswith('"')
    assert created.headers["ETag"] == tag
    for verb in ("start", "stop"):
        assert (await client.post(f"{path}/{verb}")).headers["ETag"] == tag, "the status is no part of the tag"
    restored = await client.post(f"{path}/versions/1/restore")
    assert restored.headers["ETag"] == await etag(client, path)


@pytest.mark.parametrize("canvas", [CANVAS, LARGE, None], ids=["small", "large", "none"])
async def test_tag_of_a_change_is_that_of_the_stored_flow(
    client: httpx.AsyncClient, flow: FlowRecord, canvas: object
) -> None:
    changed = await client.patch(path_of(flow), json={"canvasState": canvas, "description": "é"})
    assert changed.status_code == 200
    assert changed.headers["ETag"] == await etag(client, path_of(flow))


@pytest.mark.parametrize(
    "change",
    [{"name": "Another"}, {"description": "New"}, {"organismYaml": "organism: {name: x}"}, {"canvasState": CANVAS}],
    ids=lambda change: next(iter(change)),
)
async def test_tag_changes_with_what_users_change(
    client: httpx.AsyncClient, flow: FlowRecord, change: dict[str, Any]
) -> None:
    before = await etag(client, path_of(flow))
    after = (await client.patch(path_of(flow), json=change)).headers["ETag"]
    assert after != before
    assert (await client.patch(path_of(flow), json=change)).headers["ETag"] == after


@covers("flows.if-match")
async def test_change_that_is_based_on_an_older_flow_is_refused(client: httpx.AsyncClient, flow: FlowRecord) -> None:
    path = path_of(flow)
    old = await etag(client, path)
    mine = await client.patch(path, json={"name": "Mine"}, headers={"If-Match": old})
    assert mine.status_code == 200
    refused = await client.patch(path, json={"name": "Theirs"}, headers={"If-Match": old})
    assert (refused.status_code, refused.json()["code"]) == (412, "flow_changed")
    current = mine.json()
    assert refused.headers["ETag"] == mine.headers["ETag"]
    assert refused.json()["details"] == {
        "etag": mine.headers["ETag"],
        "latestVersion": current["latestVersion"],
        "updatedAt": current["updatedAt"],
    }
    assert (await client.get(path)).json() == current
    again = await client.patch(path, json={"name": "Theirs"}, headers={"If-Match": mine.headers["ETag"]})
    assert (again.status_code, again.json()["name"]) == (200, "Theirs")


@pytest.mark.parametrize(
    ("value", "status"),
    [("*", 200), ('"other", {tag}', 200), ('"other"', 412), ("W/{tag}", 412), ("", 412), ("\xff", 412), (",", 412)],
)
async def test_if_match_is_a_list_of_strong_tags_or_a_star(
    client: httpx.AsyncClient, flow: FlowRecord, value: str, status: int
) -> None:
    header = value.format(tag=await etag(client, path_of(flow))).encode("latin-1")
    response = await client.patch(path_of(flow), json={"name": "x"}, headers={b"If-Match": header})
    assert response.status_code == status


async def test_several_headers_are_one_list(client: httpx.AsyncClient, flow: FlowRecord) -> None:
    tag = (await etag(client, path_of(flow))).encode()
    for values in ([tag, b'"other"'], [b'"other"', tag]):
        headers = [(b"If-Match", value) for value in values]
        response = await client.patch(path_of(flow), json={}, headers=headers)
        assert response.status_code == 200, values


async def test_change_without_a_tag_is_made(client: httpx.AsyncClient, flow: FlowRecord) -> None:
    for name in ("One", "Two"):
        assert (await client.patch(path_of(flow), json={"name": name})).json()["name"] == name


async def test_one_of_many_concurrent_changes_with_the_same_tag_is_made(live_database: Database) -> None:
    with override_database(app, live_database):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            created = await client.post(f"{API}/flows", json={"name": "x"})
            path, headers = f"{API}/flows/{created.json()['id']}", {"If-Match": created.headers["ETag"]}
            changes = [client.patch(path, json={"name": f"tab {number}"}, headers=headers) for number in range(6)]
            statuses = [response.status_code for response in await asyncio.gather(*changes)]
    assert sorted(statuses) == [200, 412, 412, 412, 412, 412]


async def test_status_of_the_engine_does_not_refuse_a_change(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
) -> None:
    tag = await etag(client, path_of(flow))
    flow.status, flow.error_message = FlowStatus.ERROR, "broken"
    await session.commit()
    assert (await client.patch(path_of(flow), json={"name": "x"}, headers={"If-Match": tag})).status_code == 200


async def test_tag_does_not_hide_a_change_of_the_status(client: httpx.AsyncClient, flow: FlowRecord) -> None:
    headers = {"If-None-Match": await etag(client, path_of(flow))}
    assert (await client.get(path_of(flow), headers=headers)).status_code == 200


async def test_flow_of_another_user_has_no_tag(
    client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
) -> None:
    theirs = await create_flow(session, await create_user(session))
    response = await client.patch(path_of(theirs), json={"name": "x"}, headers={"If-Match": "*"})
    assert response.status_code == 404
    assert "ETag" not in response.headers


async def test_browsers_may_read_the_tag(client: httpx.AsyncClient, flow: FlowRecord) -> None:
    response = await client.get(path_of(flow), headers={"Origin": "http://localhost:3000"})
    assert "ETag" in response.headers["Access-Control-Expose-Headers"]
