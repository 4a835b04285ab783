"""Authorization of every operation of the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.main import app
from bloxserver.models.database import Base
from bloxserver.models.tables import Tier, UserRecord
from tests import factories
from tests.api.operations import AUTHENTICATED, CALLS_OF_MODELS, OPERATIONS, PUBLIC, call, ids_of
from tests.clerk import Clerk, clerk_authentication, override_settings

OWNER = "user_owner"
STRANGER = "user_stranger"


NAMES = {"name", "provider"}
"""Path parameters that are not ids: several users may have a secret of the same name, or a key for a provider."""
WITH_ID = {name: OPERATIONS[name] for name in AUTHENTICATED if name in OPERATIONS and OPERATIONS[name].ids - NAMES}
NESTED = {name: operation for name, operation in WITH_ID.items() if len(operation.ids - {"number"}) > 1}


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        with override_settings(API_KEY_ENCRYPTION_KEY="a-key-of-an-operator-93d4a86b1f7c"):
            yield clerk


@pytest.fixture
async def owner(session: AsyncSession) -> UserRecord:
    return await factories.create_user(session, clerk_id=OWNER, tier=Tier.PRO)


def without_request_id(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    return response.status_code, {name: value for name, value in response.json().items() if name != "requestId"}


async def all_rows(session: AsyncSession) -> dict[str, list[Any]]:
    """All rows except users, which a first request creates."""
    tables = [table for table in Base.metadata.sorted_tables if table.name != "users"]
    rows = {table.name: sorted(map(repr, (await session.execute(sa.select(table))).all())) for table in tables}
    await session.commit()
    return rows


def test_table_lists_every_operation() -> None:
    assert set(OPERATIONS) == AUTHENTICATED.keys() | PUBLIC, "every operation is in the table"
    assert {name for name, operation in OPERATIONS.items() if operation.path.startswith(("/api/v1/", "/v1/"))} == set(
        AUTHENTICATED
    )
    assert len(WITH_ID) == 36
    assert set(NESTED) == {
        "getTrigger",
        "updateTrigger",
        "listUpcomingFirings",
        "deleteTrigger",
        "regenerateTriggerToken",
        "getExecution",
        "listSteps",
        "streamExecution",
        "cancelExecution",
        "retryExecution",
        "listSigningSecrets",
        "createSigningSecret",
        "deleteSigningSecret",
        "listDeliveries",
        "redeliverWebhook",
    }


def test_document_marks_operations_that_need_a_token() -> None:
    secured = {
        operation["operationId"]
        for methods in app.openapi()["paths"].values()
        for operation in methods.values()
        if {"clerk": []} in operation.get("security", [])
    }
    assert secured == set(AUTHENTICATED)


async def test_request_without_valid_token_gets_401(
    client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession, owner: UserRecord
) -> None:
    ids = await ids_of(session, owner)
    before = await all_rows(session)
    for name in AUTHENTICATED:
        response = await call(client, name, ids)
        assert response.status_code == 401, name
        assert response.headers["WWW-Authenticate"] == "Bearer", name
        assert response.json()["message"] == "Missing authentication token", name
        forged = await call(client, name, ids, {"Authorization": "Bearer a.b.c"})
        assert (forged.status_code, forged.json()["code"]) == (401, "invalid_token"), name
    assert await all_rows(session) == before
    assert await session.scalar(sa.select(sa.func.count()).select_from(UserRecord)) == 1


async def test_owner_can_call_every_operation(
    client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession, owner: UserRecord
) -> None:
    """The calls of the table are valid, so other tests get 404 for no other reason than the owner."""
    answers = {}
    for name, operation in AUTHENTICATED.items():
        ids = await ids_of(session, owner, operation.status)
        answers[name] = (await call(client, name, ids, clerk.headers(OWNER))).status_code
    created = {"createFlow": 201, "createTrigger": 201, "runFlow": 201, "deleteFlow": 204, "deleteTrigger": 204}
    created |= {"createSecret": 201, "deleteSecret": 204, "createApiKey": 201, "revokeApiKey": 204}
    created |= {"addLlmKey": 201, "deleteLlmKey": 204}
    created |= {"createSigningSecret": 201, "deleteSigningSecret": 204, "redeliverWebhook": 201}
    created |= {"deleteCurrentUser": 204}
    refused = {
        "listUpcomingFirings": 400,
        "retryExecution": 400,
        **dict.fromkeys(("getBilling", "startCheckout", "openBillingPortal"), 404),
        **dict.fromkeys(CALLS_OF_MODELS, 503),
    }  # the trigger is a webhook; the execution is still running
    assert answers == dict.fromkeys(AUTHENTICATED, 200) | created | refused | {"streamExecution": 204}


async def test_resource_of_another_user_responds_like_an_unknown_id(
    client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession, owner: UserRecord
) -> None:
    for name in WITH_ID:
        ids = await ids_of(session, owner, AUTHENTICATED[name].status)
        before = await all_rows(session)
        random = {name: str(uuid4()) for name in ids} | {"number": "1"}
        headers = clerk.headers(STRANGER)
        theirs = without_request_id(await call(client, name, ids, headers))
        assert theirs == without_request_id(await call(client, name, random, headers)), name
        assert theirs[0] == 404, name
        assert await all_rows(session) == before, name


async def test_nested_resource_must_belong_to_the_flow_in_the_path(
    client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession, owner: UserRecord
) -> None:
    stranger = await factories.create_user(session, clerk_id=STRANGER)
    theirs, own = await ids_of(session, owner), await ids_of(session, stranger)
    second = await ids_of(session, stranger)
    before = await all_rows(session)
    headers = clerk.headers(STRANGER)
    for name, operation in NESTED.items():
        nested = operation.ids - {"flow_id"}
        unknown = without_request_id(await call(client, name, own | dict.fromkeys(nested, str(uuid4())), headers))
        assert unknown[0] == 404, name
        mixtures = {
            "own flow, their id": own | {parameter: theirs[parameter] for parameter in nested},
            "their flow, own id": theirs | {parameter: own[parameter] for parameter in nested},
            "own flow, id of another own flow": own | {parameter: second[parameter] for parameter in nested},
        }
        for mixture, ids in mixtures.items():
            assert without_request_id(await call(client, name, ids, headers)) == unknown, (name, mixture)
    assert await all_rows(session) == before


async def test_lists_contain_only_rows_of_the_user(
    client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession, owner: UserRecord
) -> None:
    stranger = await factories.create_user(session, clerk_id=STRANGER)
    theirs, own = await ids_of(session, owner), await ids_of(session, stranger)
    headers = clerk.headers(STRANGER)
    flows = (await call(client, "listFlows", own, headers)).json()
    assert ([flow["id"] for flow in flows["items"]], flows["total"]) == ([own["flow_id"]], 1)
    triggers = (await call(client, "listTriggers", own, headers)).json()
    assert [trigger["id"] for trigger in triggers] == [own["trigger_id"]]
    executions = (await call(client, "listExecutions", own, headers)).json()
    assert ([row["id"] for row in executions["items"]], executions["total"]) == ([own["execution_id"]], 1)
    everything = (await call(client, "listAllExecutions", own, headers)).json()
    assert [row["id"] for row in everything["items"]] == [own["execution_id"]]
    secrets = (await call(client, "listSecrets", own, headers)).json()
    assert sorted(secret["name"] for secret in secrets) == [own["name"]]
    keys = (await call(client, "listLlmKeys", own, headers)).json()
    assert [key["provider"] for key in keys] == [own["provider"]]
    assert (await call(client, "getFlowStats", own, headers)).json()["executionsTotal"] == 1
    assert (await call(client, "getCurrentUser", own, headers)).json()["clerkId"] == STRANGER
    assert (await call(client, "runFlow", theirs, headers)).status_code == 404
    assert (await call(client, "getUsage", own, clerk.headers(OWNER))).json()["runsUsed"] == 0


async def test_body_cannot_change_read_only_members(
    client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession, owner: UserRecord
) -> None:
    """Clients send whole objects back, so read-only members are ignored, in both spellings."""
    ids = await ids_of(session, owner)
    headers = clerk.headers(OWNER)
    path = f"/api/v1/flows/{ids['flow_id']}"
    before = (await client.get(path, headers=headers)).json()
    stranger = await factories.create_user(session, clerk_id=STRANGER)
    foreign = {
        "id": str(uuid4()),
        "userId": str(stranger.id),
        "user_id": str(stranger.id),
        "status": "error",
        "containerId": "c",
        "container_id": "c",
        "errorMessage": "e",
        "activeVersionId": str(uuid4()),
        "active_version_id": str(uuid4()),
        "createdAt": "2001-01-01T00:00:00Z",
        "created_at": "2001-01-01T00:00:00Z",
        "updatedAt": "2001-01-01T00:00:00Z",
        "tier": "enterprise",
    }
    assert (await client.patch(path, json=foreign, headers=headers)).json() == before
    created = (await client.post("/api/v1/flows", json={"name": "New"} | foreign, headers=headers)).json()
    assert (created["userId"], created["status"]) == (before["userId"], "stopped")
    assert created["createdAt"] > before["createdAt"]
    assert created["id"] != foreign["id"]
    body = {"type": "manual", "name": "T", "config": {}, "webhookToken": "chosen", "flowId": str(uuid4())}
    trigger = (await client.post(f"{path}/triggers", json=body, headers=headers)).json()
    assert (trigger["flowId"], trigger["webhookToken"]) == (ids["flow_id"], None)
    assert (await client.get("/api/v1/me", headers=headers)).json()["tier"] == "pro"
