"""Versions of a flow's definition."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.background.reconcile import reconcile_flows
from bloxserver.models.database import Database
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import FlowRecord, FlowVersionRecord, UserRecord
from bloxserver.settings import Settings
from tests import factories
from tests.api.contract import API, UTC_TIME, assert_invalid, assert_problem, covers, path_of

CANVAS = {"nodes": [{"id": "n", "type": None, "position": {"x": 1, "y": 2}, "data": {"on": True}}], "edges": []}


@pytest.fixture
async def path(client: httpx.AsyncClient, dev_user: UserRecord) -> str:
    """The path of a new flow."""
    return f"{API}/flows/{(await client.post(f'{API}/flows', json={'name': 'A flow'})).json()['id']}"


async def patched(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    response = await client.patch(path, json=body)
    assert response.status_code == 200
    flow: dict[str, Any] = response.json()
    return flow


async def texts(session: AsyncSession) -> list[tuple[int, str]]:
    rows = await session.execute(
        sa.select(FlowVersionRecord.number, FlowVersionRecord.organism_yaml).order_by(FlowVersionRecord.number)
    )
    return [(number, text) for number, text in rows]


@covers("versions.made")
async def test_changed_definition_creates_a_version(
    client: httpx.AsyncClient, path: str, session: AsyncSession
) -> None:
    created = (await client.get(path)).json()
    assert (created["latestVersion"], created["activeVersion"]) == (1, None)
    assert (await patched(client, path, organismYaml="one"))["latestVersion"] == 2
    assert (await patched(client, path, canvasState=CANVAS))["latestVersion"] == 3
    same = await patched(client, path, name="Renamed", organismYaml="one", canvasState=CANVAS)
    assert same["latestVersion"] == 3
    assert (await client.patch(path, json=same)).json()["latestVersion"] == 3
    assert (await patched(client, path, description="Other"))["latestVersion"] == 3
    assert (await patched(client, path, organismYaml=None))["latestVersion"] == 3
    assert (await patched(client, path, organismYaml=DEFAULT_ORGANISM, canvasState=None))["latestVersion"] == 4
    assert await texts(session) == [(1, DEFAULT_ORGANISM), (2, "one"), (3, "one"), (4, DEFAULT_ORGANISM)]
    truth = CANVAS | {"truth": True}
    assert (await patched(client, path, canvasState=truth))["latestVersion"] == 5
    assert (await patched(client, path, canvasState=truth | {"truth": 1}))["latestVersion"] == 6


@covers("versions.by-hand")
async def test_definition_of_a_flow_without_versions_becomes_a_version(
    client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
) -> None:
    flow = await factories.create_flow(session, dev_user, organism_yaml="by hand")
    shown = (await client.get(path_of(flow))).json()
    assert (shown["latestVersion"], shown["activeVersion"]) == (None, None)
    listed = await client.get(f"{path_of(flow)}/versions")
    assert (listed.status_code, listed.json()["items"], listed.json()["total"]) == (200, [], 0)
    assert (await patched(client, path_of(flow), name="Renamed"))["latestVersion"] is None
    assert (await patched(client, path_of(flow), organismYaml="changed"))["latestVersion"] == 2
    assert await texts(session) == [(1, "by hand"), (2, "changed")]


@covers("versions.list", "versions.get")
async def test_versions_can_be_listed_and_retrieved(client: httpx.AsyncClient, path: str) -> None:
    await patched(client, path, organismYaml="one")
    await patched(client, path, organismYaml="two", canvasState=CANVAS)
    page = (await client.get(f"{path}/versions", params={"page_size": 2})).json()
    assert [item["number"] for item in page["items"]] == [3, 2]
    assert [item["latest"] for item in page["items"]] == [True, False]
    assert {item["active"] for item in page["items"]} == {False}
    assert page["items"][0].keys() == {"number", "createdAt", "active", "latest"}
    assert UTC_TIME.fullmatch(page["items"][0]["createdAt"])
    assert (page["total"], page["page"], page["pageSize"], page["hasMore"]) == (3, 1, 2, True)
    rest = (await client.get(f"{path}/versions", params={"page_size": 2, "page": 2})).json()
    assert [item["number"] for item in rest["items"]] == [1]

    version = (await client.get(f"{path}/versions/3")).json()
    assert version.keys() == {"number", "createdAt", "active", "latest", "organismYaml", "canvasState"}
    assert version["organismYaml"] == "two"
    assert version["canvasState"]["nodes"] == CANVAS["nodes"]
    assert (await client.get(f"{path}/versions/1")).json()["organismYaml"] == DEFAULT_ORGANISM


@covers("versions.404")
async def test_unknown_version_is_not_found(
    client: httpx.AsyncClient, path: str, session: AsyncSession, dev_user: UserRecord
) -> None:
    for request in (client.get(f"{path}/versions/2"), client.post(f"{path}/versions/2/restore")):
        assert_problem(await request, 404, "version_not_found", "Version not found")
    assert_problem(await client.get(f"{API}/flows/{uuid4()}/versions"), 404, "flow_not_found", "Flow not found")
    for number in ("0", "-1", "x", "1.5", str(2**31), "9" * 40):
        assert_invalid(await client.get(f"{path}/versions/{number}"), "path.number")
    theirs = await factories.create_flow(session, await factories.create_user(session), latest_version=1)
    session.add(FlowVersionRecord(flow_id=theirs.id, number=1, organism_yaml="theirs"))
    await session.commit()
    assert_problem(await client.get(f"{path_of(theirs)}/versions/1"), 404, "version_not_found", "Version not found")
    refused = await client.post(f"{path_of(theirs)}/versions/1/restore")
    assert_problem(refused, 404, "flow_not_found", "Flow not found")


@covers("versions.restore")
async def test_restored_version_becomes_the_newest(client: httpx.AsyncClient, path: str, session: AsyncSession) -> None:
    await patched(client, path, organismYaml="one", canvasState=CANVAS)
    await patched(client, path, organismYaml="two", canvasState=None, name="Renamed")
    restored = await client.post(f"{path}/versions/2/restore")
    assert restored.status_code == 200
    flow = restored.json()
    assert (flow["organismYaml"], flow["canvasState"]["nodes"], flow["name"]) == ("one", CANVAS["nodes"], "Renamed")
    assert flow["latestVersion"] == 4
    assert (await client.get(path)).json() == flow
    assert (await client.post(f"{path}/versions/1/restore")).json()["canvasState"] is None
    again = (await client.post(f"{path}/versions/5/restore")).json()
    assert again["latestVersion"] == 5, "an unchanged definition creates no version"


@covers("versions.armed")
async def test_active_version_changes_at_the_next_start(
    live_client: httpx.AsyncClient, live_database: Database
) -> None:
    path = f"{API}/flows/{(await live_client.post(f'{API}/flows', json={'name': 'A flow'})).json()['id']}"
    await live_client.post(f"{path}/start")
    await reconcile_flows(live_database, Settings(stop_grace_seconds=0))
    started = (await live_client.get(path)).json()
    assert (started["status"], started["activeVersion"], started["latestVersion"]) == ("running", 1, 1)
    changed = await patched(live_client, path, organismYaml=DEFAULT_ORGANISM + "# changed\n")
    assert (changed["activeVersion"], changed["latestVersion"]) == (1, 2)
    run = (await live_client.post(f"{path}/executions/run")).json()
    assert run["flowVersion"] == 1
    listed = (await live_client.get(f"{path}/versions")).json()["items"]
    assert [(item["number"], item["active"], item["latest"]) for item in listed] == [(2, False, True), (1, True, False)]
    await live_client.post(f"{path}/stop")
    await reconcile_flows(live_database, Settings(stop_grace_seconds=0))
    await live_client.post(f"{path}/start")
    await reconcile_flows(live_database, Settings(stop_grace_seconds=0))
    assert (await live_client.get(path)).json()["activeVersion"] == 2
    assert (await live_client.post(f"{path}/executions/run")).json()["flowVersion"] == 2


@covers("versions.numbers")
async def test_version_numbers_are_unique_under_concurrency(
    live_client: httpx.AsyncClient, live_database: Database
) -> None:
    await live_client.get(f"{API}/me")
    async with live_database.transaction() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
        by_hand = FlowRecord(user_id=user.id, name="By hand", organism_yaml="by hand")
        session.add(by_hand)
    async with live_database.transaction() as session:
        flow_id = (await session.scalars(sa.select(FlowRecord.id))).one()
    path = f"{API}/flows/{flow_id}"
    bodies: list[dict[str, Any]] = [{"organismYaml": f"text {number}"} for number in range(8)]
    bodies += [{"canvasState": {"version": number}} for number in range(8)]
    answers = await asyncio.gather(*(live_client.patch(path, json=body) for body in bodies))
    assert Counter(answer.status_code for answer in answers) == {200: 16}
    assert sorted(answer.json()["latestVersion"] for answer in answers) == list(range(2, 18))
    flow = (await live_client.get(path)).json()
    newest = (await live_client.get(f"{path}/versions/17")).json()
    assert flow["latestVersion"] == 17
    assert (flow["organismYaml"], flow["canvasState"]) == (newest["organismYaml"], newest["canvasState"])
    async with live_database.transaction() as session:
        assert UUID(flow["id"]) == flow_id
        assert [number for number, _ in await texts(session)] == list(range(1, 18))
