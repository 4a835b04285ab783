"""What API keys may do: the scope of every operation, and restrictions to flows."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.main import app
from bloxserver.models.enums import Scope
from bloxserver.models.tables import FlowStatus, Tier, UserRecord
from bloxserver.services.api_keys import NewKey, create_api_key
from tests import factories
from tests.api.contract import covers
from tests.api.operations import AUTHENTICATED, CALLS_OF_MODELS, OPERATIONS, call, ids_of
from tests.clerk import Clerk, clerk_authentication, override_settings

RUN = {"runFlow", "cancelExecution", "retryExecution", "redeliverWebhook"}
ADMIN = {
    "getBilling",
    "startCheckout",
    "openBillingPortal",
    "deleteCurrentUser",
    "exportCurrentUser",
    "listSecrets",
    "createSecret",
    "setSecret",
    "deleteSecret",
    "listLlmKeys",
    "addLlmKey",
    "deleteLlmKey",
    "listApiKeys",
    "createApiKey",
    "revokeApiKey",
    "listSigningSecrets",
    "createSigningSecret",
    "deleteSigningSecret",
    "listAuditEvents",
}
WRITE = {
    "createFlow",
    "updateFlow",
    "deleteFlow",
    "startFlow",
    "stopFlow",
    "createTrigger",
    "updateTrigger",
    "deleteTrigger",
    "regenerateTriggerToken",
    "setFlowVars",
    "restoreFlowVersion",
}
LLM = {"createChatCompletion", "createEmbeddings", "listLanguageModels"}
BY_SCOPE = {Scope.RUN: RUN, Scope.ADMIN: ADMIN, Scope.WRITE: WRITE, Scope.LLM: LLM}
SCOPES = {
    name: next((scope for scope, names in BY_SCOPE.items() if name in names), Scope.READ) for name in AUTHENTICATED
}


@pytest.fixture(autouse=True)
async def clerk() -> object:
    async with clerk_authentication() as clerk:
        with override_settings(API_KEY_ENCRYPTION_KEY="a-key-of-an-operator-93d4a86b1f7c"):
            yield clerk


@pytest.fixture
async def owner(session: AsyncSession) -> UserRecord:
    return await factories.create_user(session, clerk_id="user_owner", tier=Tier.ENTERPRISE)


async def key_of(
    session: AsyncSession, user: UserRecord, *scopes: Scope, flow_ids: Sequence[str] | None = None
) -> dict[str, str]:
    """The headers of a request with a new key."""
    ids = None if flow_ids is None else [UUID(flow_id) for flow_id in flow_ids]
    _, key = await create_api_key(session, user.id, NewKey("A key", scopes, ids))
    await session.commit()
    return {"Authorization": f"Bearer {key}"}


def test_document_has_the_scope_of_every_operation() -> None:
    documented = {
        operation["operationId"]: operation["security"]
        for methods in app.openapi()["paths"].values()
        for operation in methods.values()
        if "security" in operation
    }
    assert documented == {name: [{"clerk": []}, {"apiKey": [scope]}] for name, scope in SCOPES.items()}


@covers("api-keys.scopes")
@pytest.mark.parametrize("name", AUTHENTICATED)
async def test_operation_needs_its_scope_and_no_other(
    client: httpx.AsyncClient, session: AsyncSession, owner: UserRecord, name: str
) -> None:
    ids = await ids_of(session, owner, AUTHENTICATED[name].status)
    others = [scope for scope in Scope if scope is not SCOPES[name]]
    refused = await call(client, name, ids, await key_of(session, owner, *others))
    assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
    assert refused.json()["details"] == {"scope": SCOPES[name].value}
    accepted = await call(client, name, ids, await key_of(session, owner, SCOPES[name]))
    refused_otherwise = {"listUpcomingFirings": 400, "retryExecution": 400}
    refused_otherwise |= dict.fromkeys(("getBilling", "startCheckout", "openBillingPortal"), 404)
    refused_otherwise |= dict.fromkeys(CALLS_OF_MODELS, 503)
    expected = refused_otherwise.get(name)
    assert accepted.status_code == expected if expected else accepted.is_success, accepted.text


@pytest.mark.parametrize("name", [name for name in AUTHENTICATED if "flow_id" in OPERATIONS[name].ids])
async def test_flow_to_which_a_key_is_not_restricted_does_not_exist_for_it(
    client: httpx.AsyncClient, session: AsyncSession, owner: UserRecord, name: str
) -> None:
    own, other = await ids_of(session, owner), await ids_of(session, owner, AUTHENTICATED[name].status)
    headers = await key_of(session, owner, *Scope, flow_ids=[own["flow_id"]])
    hidden = await call(client, name, other, headers)
    unknown = await call(client, name, other | {"flow_id": str(uuid4())}, headers)
    assert (hidden.status_code, hidden.json()["code"]) == (404, "flow_not_found")
    assert hidden.json()["message"] == unknown.json()["message"]


@covers("api-keys.flows")
async def test_lists_contain_only_flows_to_which_the_key_is_restricted(
    client: httpx.AsyncClient, session: AsyncSession, owner: UserRecord
) -> None:
    own, other = await ids_of(session, owner), await ids_of(session, owner)
    headers = await key_of(session, owner, *Scope, flow_ids=[own["flow_id"]])
    flows = (await call(client, "listFlows", own, headers)).json()
    assert ([flow["id"] for flow in flows["items"]], flows["total"]) == ([own["flow_id"]], 1)
    executions = (await call(client, "listAllExecutions", own, headers)).json()
    assert ([each["id"] for each in executions["items"]], executions["total"]) == ([own["execution_id"]], 1)
    path = f"/api/v1/executions?flow_id={other['flow_id']}"
    assert (await client.get(path, headers=headers)).json()["items"] == []
    path += f"&flow_id={own['flow_id']}"
    found = (await client.get(path, headers=headers)).json()["items"]
    assert [each["id"] for each in found] == [own["execution_id"]]


async def test_key_that_is_restricted_to_flows_cannot_create_flows(
    client: httpx.AsyncClient, session: AsyncSession, owner: UserRecord
) -> None:
    own = await ids_of(session, owner)
    headers = await key_of(session, owner, *Scope, flow_ids=[own["flow_id"]])
    refused = await call(client, "createFlow", own, headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "flow_restricted")
    assert (await call(client, "runFlow", own, headers)).status_code == 201


@pytest.mark.parametrize("scope", Scope)
async def test_token_of_a_webhook_is_shown_only_with_run_or_write(
    client: httpx.AsyncClient, session: AsyncSession, owner: UserRecord, scope: Scope
) -> None:
    ids = await ids_of(session, owner)
    headers = await key_of(session, owner, Scope.READ, scope)
    shown = (await call(client, "getTrigger", ids, headers)).json()
    assert (await call(client, "listTriggers", ids, headers)).json() == [shown]
    is_shown = scope in {Scope.RUN, Scope.WRITE}
    assert (shown["webhookToken"] is not None, shown["webhookUrl"] is not None) == (is_shown, is_shown)


async def test_token_of_the_issuer_needs_no_scope(
    client: httpx.AsyncClient, session: AsyncSession, owner: UserRecord, clerk: Clerk
) -> None:
    ids = await ids_of(session, owner, FlowStatus.RUNNING)
    trigger = await call(client, "getTrigger", ids, clerk.headers("user_owner"))
    assert trigger.json()["webhookToken"] is not None
