"""The `Idempotency-Key` of requests that create something."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.main import app
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus, FlowStatus, Tier
from bloxserver.models.tables import ExecutionRecord, FlowRecord, IdempotencyKeyRecord, UserRecord
from tests import factories
from tests.api.contract import API, assert_problem, covers, path_of
from tests.api.operations import AUTHENTICATED, OPERATIONS, call, ids_of
from tests.clerk import override_settings

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
SHOWN_ONCE = {"createApiKey": "key", "createSigningSecret": "secret"}
"""Members that only the first response has."""
CREATING = [
    operation["operationId"]
    for methods in app.openapi()["paths"].values()
    for method, operation in methods.items()
    if method == "post" and "201" in operation["responses"]
]


@pytest.fixture(autouse=True)
def encryption_key() -> Iterator[None]:
    with override_settings(API_KEY_ENCRYPTION_KEY="an-encryption-key-of-32-bytes-or-more"):
        yield


@pytest.fixture
async def rich_user(dev_user: UserRecord, session: AsyncSession) -> UserRecord:
    """The development user, on a plan whose limits the tests do not reach."""
    await session.execute(sa.update(UserRecord).where(UserRecord.id == dev_user.id).values(tier=Tier.PRO))
    await session.commit()
    return dev_user


async def prepare(session: AsyncSession, user: UserRecord, name: str) -> dict[str, str]:
    ids = await ids_of(session, user, AUTHENTICATED[name].status)
    await session.execute(
        sa.update(ExecutionRecord).values(status=ExecutionStatus.ERROR, error_message="failed")  # can be retried
    )
    await session.commit()
    return ids


async def rows(session: AsyncSession) -> dict[str, int]:
    """The number of rows in all tables but that of idempotency keys."""
    tables = [table for table in FlowRecord.metadata.sorted_tables if table.name != "idempotency_keys"]
    return {table.name: await session.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in tables}


def test_every_operation_that_creates_is_tested() -> None:
    assert len(CREATING) >= 6
    for name in CREATING:
        parameters = app.openapi()["paths"][OPERATIONS[name].path]["post"]["parameters"]
        assert "Idempotency-Key" in [parameter["name"] for parameter in parameters], name


@covers("idempotency.repeat", "idempotency.secrets")
@pytest.mark.parametrize("name", CREATING)
async def test_repeated_request_returns_what_the_first_created(
    client: httpx.AsyncClient, session: AsyncSession, rich_user: UserRecord, name: str
) -> None:
    ids = await prepare(session, rich_user, name)
    first = await call(client, name, ids, KEY)
    assert first.status_code == 201, first.text
    assert "Idempotent-Replayed" not in first.headers
    before = await rows(session)
    second = await call(client, name, ids, KEY)
    assert second.status_code == 201, second.text
    assert second.headers["Idempotent-Replayed"] == "true"
    expected = first.json()
    if name in SHOWN_ONCE:
        assert expected[SHOWN_ONCE[name]]
        expected[SHOWN_ONCE[name]] = None
    assert second.json() == expected
    assert await rows(session) == before


@covers("idempotency.other-request")
@pytest.mark.parametrize("name", CREATING)
async def test_key_of_another_request_is_refused(
    client: httpx.AsyncClient, session: AsyncSession, rich_user: UserRecord, name: str
) -> None:
    ids = await prepare(session, rich_user, name)
    body = AUTHENTICATED["createFlow"].body if name != "createFlow" else {"name": "Other"}
    other = await client.post(f"{API}/flows", json=body, headers=KEY)
    assert other.status_code == 201
    before = await rows(session)
    refused = await call(client, name, ids, KEY)
    assert_problem(
        refused,
        422,
        "idempotency_key_reused",
        "This Idempotency-Key was used for another request. Send a new key for each one.",
    )
    assert await rows(session) == before


async def test_body_query_and_path_are_part_of_the_request(
    client: httpx.AsyncClient, session: AsyncSession, rich_user: UserRecord
) -> None:
    flow = await factories.create_flow(session, rich_user)
    path = f"{path_of(flow)}/executions/run"
    assert (await client.post(path, json={"inputPayload": "a"}, headers=KEY)).status_code == 201
    for query, payload in (("", "b"), ("?input_payload=a", "a")):
        refused = await client.post(f"{path}{query}", json={"inputPayload": payload}, headers=KEY)
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")


@covers("idempotency.failed")
async def test_failed_request_does_not_use_its_key(
    client: httpx.AsyncClient, session: AsyncSession, rich_user: UserRecord
) -> None:
    flow = await factories.create_flow(session, rich_user, status=FlowStatus.STOPPED)
    path = f"{path_of(flow)}/executions/run"
    assert (await client.post(path, headers=KEY)).status_code == 400
    await session.execute(sa.update(FlowRecord).values(status=FlowStatus.RUNNING))
    await session.commit()
    assert (await client.post(path, headers=KEY)).status_code == 201


async def test_keys_of_different_users_are_different(
    client: httpx.AsyncClient, session: AsyncSession, rich_user: UserRecord
) -> None:
    other = await factories.create_user(session)
    assert (await client.post(f"{API}/flows", json={"name": "A"}, headers=KEY)).status_code == 201
    key = await session.scalar(sa.select(IdempotencyKeyRecord))
    assert key is not None
    assert key.owner_id == rich_user.id
    key.owner_id = other.id
    await session.commit()
    again = await client.post(f"{API}/flows", json={"name": "B"}, headers=KEY)
    assert (again.status_code, again.json()["name"]) == (201, "B")


async def test_resource_that_was_deleted_is_not_found(client: httpx.AsyncClient, rich_user: UserRecord) -> None:
    created = await client.post(f"{API}/flows", json={"name": "A"}, headers=KEY)
    assert (await client.delete(f"{API}/flows/{created.json()['id']}")).status_code == 204
    assert_problem(
        await client.post(f"{API}/flows", json={"name": "A"}, headers=KEY), 404, "flow_not_found", "Flow not found"
    )


@pytest.mark.parametrize("key", ["", "  "])
async def test_empty_key_is_refused(client: httpx.AsyncClient, rich_user: UserRecord, key: str) -> None:
    response = await client.post(f"{API}/flows", json={"name": "A"}, headers={"Idempotency-Key": key})
    assert response.status_code == 422
    assert response.json()["details"] == {"header.Idempotency-Key": "Must not be empty"}


async def test_key_can_have_any_characters(client: httpx.AsyncClient, rich_user: UserRecord) -> None:
    for key in (b"x" * 8000, b'"quoted"', b"\xff\xfe", "schl\u00fcssel".encode()):
        headers: Any = {"Idempotency-Key": key}
        first = await client.post(f"{API}/flows", json={"name": "A"}, headers=headers)
        second = await client.post(f"{API}/flows", json={"name": "A"}, headers=headers)
        assert first.status_code == second.status_code == 201
        assert first.json()["id"] == second.json()["id"]


async def test_large_body_is_part_of_the_request(client: httpx.AsyncClient, rich_user: UserRecord) -> None:
    """Another process reads large bodies."""
    text = "# " + "x" * 50_000
    first = await client.post(f"{API}/flows", json={"name": "A", "organismYaml": text}, headers=KEY)
    assert first.status_code == 201
    same = await client.post(f"{API}/flows", json={"name": "A", "organismYaml": text}, headers=KEY)
    assert (same.status_code, same.json()["id"]) == (201, first.json()["id"])
    other = await client.post(f"{API}/flows", json={"name": "A", "organismYaml": text + "y"}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


@covers("idempotency.concurrent")
async def test_concurrent_requests_create_one_resource(live_client: httpx.AsyncClient, live_database: Database) -> None:
    created = (await live_client.post(f"{API}/flows", json={"name": "A"})).json()
    async with live_database.transaction() as session:
        await session.execute(sa.update(FlowRecord).values(status=FlowStatus.RUNNING))
    path = f"{API}/flows/{created['id']}/executions/run"
    responses = await asyncio.gather(*(live_client.post(path, headers=KEY) for _ in range(30)))
    assert {response.status_code for response in responses} == {201}
    assert len({response.json()["id"] for response in responses}) == 1
    assert [response.headers.get("Idempotent-Replayed") for response in responses].count(None) == 1
    async with live_database.sessions() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(ExecutionRecord)) == 1
