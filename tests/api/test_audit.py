"""The audit log: one event for each change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.dependencies import CurrentUser, get_current_user
from bloxserver.api.main import app
from bloxserver.clock import now
from bloxserver.models.enums import ActorKind, AuditAction, ExecutionStatus, Scope
from bloxserver.models.tables import ApiKeyRecord, AuditEventRecord, ExecutionRecord, FlowStatus, Tier, UserRecord
from bloxserver.services.api_keys import NewKey, create_api_key
from tests import factories
from tests.api.contract import API, covers
from tests.api.operations import AUTHENTICATED, OPERATIONS, call, ids_of
from tests.clerk import Clerk, clerk_authentication, override_settings

AUDITED = {
    "createFlow": ("flow.created", "flow_id"),
    "updateFlow": ("flow.updated", "flow_id"),
    "deleteFlow": ("flow.deleted", "flow_id"),
    "startFlow": ("flow.started", "flow_id"),
    "stopFlow": ("flow.stopped", "flow_id"),
    "setFlowVars": ("flow.vars_set", "flow_id"),
    "restoreFlowVersion": ("flow.version_restored", "flow_id"),
    "createTrigger": ("trigger.created", "trigger_id"),
    "updateTrigger": ("trigger.updated", "trigger_id"),
    "deleteTrigger": ("trigger.deleted", "trigger_id"),
    "regenerateTriggerToken": ("trigger.token_regenerated", "trigger_id"),
    "createSigningSecret": ("signing_secret.created", "secret_id"),
    "deleteSigningSecret": ("signing_secret.deleted", "secret_id"),
    "redeliverWebhook": ("execution.redelivered", "delivery_id"),
    "cancelExecution": ("execution.cancelled", "execution_id"),
    "retryExecution": ("execution.retried", "execution_id"),
    "createSecret": ("secret.created", "name"),
    "setSecret": ("secret.updated", "name"),
    "deleteSecret": ("secret.deleted", "name"),
    "addLlmKey": ("llm_key.added", "provider"),
    "deleteLlmKey": ("llm_key.deleted", "provider"),
    "createApiKey": ("api_key.created", "key_id"),
    "revokeApiKey": ("api_key.revoked", "key_id"),
    "deleteCurrentUser": ("user.deleted", "user_id"),
}
"""For each operation that changes something: the action, and the parameter that is the resource."""
NOT_AUDITED = {
    "runFlow",
    "validateOrganism",
    "validateFlow",
    "estimateFlow",
    "deriveOrganism",
    "startCheckout",
    "openBillingPortal",
}
NOT_AUDITED |= {"createChatCompletion", "createEmbeddings"}
"""Operations that are no GET and change nothing, apart from executions, which are their own record."""
CREATING = {"createFlow", "createTrigger", "createSigningSecret", "createSecret", "addLlmKey", "createApiKey"}


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        with override_settings(API_KEY_ENCRYPTION_KEY="a-key-of-an-operator-93d4a86b1f7c"):
            yield clerk


@pytest.fixture
async def owner(session: AsyncSession) -> UserRecord:
    return await factories.create_user(session, clerk_id="user_owner", tier=Tier.ENTERPRISE)


async def all_events(session: AsyncSession) -> list[AuditEventRecord]:
    events = await session.scalars(sa.select(AuditEventRecord).order_by(AuditEventRecord.id))
    return list(events.all())


async def arranged(session: AsyncSession, user: UserRecord, name: str) -> dict[str, str]:
    """The path parameters of the operation, without events so far."""
    ids = await ids_of(session, user, AUTHENTICATED[name].status) | {"user_id": str(user.id)}
    if name == "retryExecution":
        await session.execute(sa.update(ExecutionRecord).values(status=ExecutionStatus.SUCCESS))
    await session.execute(sa.delete(AuditEventRecord))
    await session.commit()
    return ids


async def key_of(session: AsyncSession, user: UserRecord, *scopes: Scope, **access: Any) -> tuple[UUID, dict[str, str]]:
    """The id of a new key, and the headers of a request with it."""
    row, key = await create_api_key(session, user.id, NewKey("A key", scopes or tuple(Scope), **access))
    await session.commit()
    return row.id, {"Authorization": f"Bearer {key}"}


def test_every_operation_that_is_no_get_is_audited_or_excluded() -> None:
    changing = {name for name in AUTHENTICATED if OPERATIONS[name].method != "GET"}
    assert changing == AUDITED.keys() | NOT_AUDITED
    by_others = {action for action in AuditAction if action.startswith("user.")} | {"llm_key.invalidated"}
    assert {action for action, _ in AUDITED.values()} | by_others == set(AuditAction)


@covers("audit.events")
@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize("name", AUDITED)
async def test_change_records_exactly_one_event(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, owner: UserRecord, name: str, with_key: bool
) -> None:
    key_id, headers = await key_of(session, owner) if with_key else (None, clerk.headers("user_owner"))
    ids = await arranged(session, owner, name)
    response = await call(client, name, ids, headers)
    assert response.is_success, response.text
    [event] = await all_events(session)
    action, resource = AUDITED[name]
    if name in CREATING:
        ids[resource] = response.json()[resource if resource in ("name", "provider") else "id"]
    assert (event.action, event.resource_id, event.user_id) == (action, ids[resource], owner.id)
    is_of_flow = action.startswith(("flow.", "trigger.", "signing_secret.", "execution."))
    assert event.flow_id == (UUID(ids["flow_id"]) if is_of_flow else None)
    assert (event.actor, event.actor_id) == (
        (ActorKind.API_KEY, str(key_id)) if with_key else (ActorKind.USER, str(owner.id))
    )
    assert (event.address, event.request_id) == ("127.0.0.1", response.headers["X-Request-Id"])
    assert abs(event.created_at - now()) < timedelta(minutes=1)


@pytest.mark.parametrize("name", sorted(AUTHENTICATED.keys() - AUDITED.keys()))
async def test_other_operations_record_nothing(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, owner: UserRecord, name: str
) -> None:
    ids = await arranged(session, owner, name)
    await call(client, name, ids, clerk.headers("user_owner"))
    assert await all_events(session) == []


async def test_repeated_request_with_an_idempotency_key_records_nothing(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    for _ in range(2):
        created = await client.post(f"{API}/flows", json={"name": "A"}, headers={"Idempotency-Key": "k"})
        assert created.status_code == 201
    assert [event.action for event in await all_events(session)] == ["user.created", "flow.created"]


CHANGES: list[tuple[str, str, dict[str, Any] | None, dict[str, Any] | None, dict[str, Any] | None]] = [
    ("PATCH", "{flow}", {"name": "New", "description": None}, {"name": "A flow"}, {"name": "New"}),
    ("PATCH", "{flow}", {"organismYaml": "changed"}, {"latestVersion": 1}, {"latestVersion": 2}),
    ("PATCH", "{flow}", {"canvasState": {"nodes": []}}, {"latestVersion": 1}, {"latestVersion": 2}),
    ("PATCH", "{trigger}", {"name": "New", "enabled": True}, {"name": "A trigger"}, {"name": "New"}),
    ("PATCH", "{trigger}", {"enabled": False}, {"enabled": True}, {"enabled": False}),
    ("PATCH", "{trigger}", {"config": {"a": 1}}, {"config": "[not recorded]"}, {"config": "[not recorded]"}),
    ("POST", "{flow}/stop", None, {"status": "running"}, {"status": "stopping"}),
    ("DELETE", "{trigger}", None, {"type": "webhook", "name": "A trigger"}, None),
    ("DELETE", "{flow}", None, {"name": "A flow"}, None),
    ("POST", "{trigger}/regenerate-token", None, None, {"previousTokenExpiresAt": None}),
    ("POST", "{flow}/executions/{execution}/cancel", None, {"status": "running"}, {"status": "cancelled"}),
]


@pytest.mark.parametrize(("method", "path", "body", "before", "after"), CHANGES)
async def test_event_has_the_changed_members_before_and_after(
    client: httpx.AsyncClient,
    session: AsyncSession,
    dev_user: UserRecord,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> None:
    flow = await factories.create_flow(session, dev_user)
    trigger, execution = await factories.create_trigger(session, flow), await factories.create_execution(session, flow)
    path = path.format(
        flow=f"/flows/{flow.id}", trigger=f"/flows/{flow.id}/triggers/{trigger.id}", execution=execution.id
    )
    assert (await client.request(method, f"{API}{path}", json=body)).is_success
    _, event = await all_events(session)
    assert (event.before, event.after) == (before, after)


async def test_restored_version_is_recorded(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    flow = (await client.post(f"{API}/flows", json={"name": "A", "organismYaml": "1"})).json()
    for text in ("2", "3"):
        await client.patch(f"{API}/flows/{flow['id']}", json={"organismYaml": text})
    for _ in range(2):  # the second one changes nothing
        assert (await client.post(f"{API}/flows/{flow['id']}/versions/1/restore")).status_code == 200
    *_, created, _, _, restored = await all_events(session)
    assert (created.before, created.after) == (None, {"name": "A", "description": None})
    assert (restored.before, restored.after) == ({"latestVersion": 3}, {"latestVersion": 4, "number": 1})


async def test_definition_of_a_flow_without_its_version_row_is_recorded(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    """Another program inserted the flow. The number of its version does not change."""
    flow = await factories.create_flow(session, dev_user, latest_version=1)
    assert (await client.patch(f"{API}/flows/{flow.id}", json={"organismYaml": "changed"})).status_code == 200
    _, event = await all_events(session)
    assert (event.action, event.before, event.after) == ("flow.updated", {"latestVersion": 1}, {"latestVersion": 1})


async def test_requests_that_change_nothing_record_nothing(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    flow = await factories.create_flow(session, dev_user, name="Same", canvas_state={"nodes": []})
    schedule = await factories.create_trigger(session, flow, type="schedule", name="Same", config={"cron": "0 9 * * *"})
    execution = await factories.create_execution(session, flow, status=ExecutionStatus.CANCELLED)
    await session.execute(sa.delete(AuditEventRecord))
    await session.commit()
    path, unknown = f"{API}/flows/{flow.id}", uuid4()
    requests: list[tuple[str, str, Any, int]] = [
        ("PATCH", path, {}, 200),
        ("PATCH", path, {"name": "Same"}, 200),
        ("PATCH", path, {"organismYaml": flow.organism_yaml}, 200),
        ("PATCH", path, {"name": ""}, 422),
        ("POST", f"{path}/start", None, 400),
        ("POST", f"{path}/versions/1/restore", None, 404),
        ("PATCH", f"{path}/triggers/{schedule.id}", {}, 200),
        ("PATCH", f"{path}/triggers/{schedule.id}", {"name": "Same", "config": {"cron": "0 9 * * *"}}, 200),
        ("PATCH", f"{path}/triggers/{schedule.id}", {"config": {"cron": "x"}}, 422),
        ("POST", f"{path}/triggers/{schedule.id}/regenerate-token", None, 400),
        ("DELETE", f"{path}/triggers/{unknown}", None, 404),
        ("POST", f"{path}/executions/{execution.id}/cancel", None, 200),
        ("POST", f"{path}/executions/{unknown}/retry", None, 404),
        ("DELETE", f"{API}/flows/{unknown}", None, 404),
        ("DELETE", f"{API}/secrets/UNKNOWN", None, 404),
        ("DELETE", f"{API}/api-keys/{unknown}", None, 404),
        ("POST", f"{API}/api-keys", {"name": "A", "scopes": ["read"], "flowIds": [str(unknown)]}, 404),
    ]
    for method, target, body, status in requests:
        response = await client.request(method, target, json=body)
        assert response.status_code == status, (target, response.text)
    assert await all_events(session) == []


@covers("audit.secrets")
async def test_no_event_contains_a_secret(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, owner: UserRecord
) -> None:
    """Texts that a user may send as a secret, and those that the server makes."""
    canary = f"canary-{uuid4().hex}"
    _, headers = await key_of(session, owner)

    async def send(method: str, path: str, body: Any = None) -> Any:
        response = await client.request(method, f"{API}{path}", json=body, headers=headers)
        assert response.is_success, response.text
        return response.json() if response.content else None

    secrets = [headers["Authorization"].removeprefix("Bearer "), canary]
    flow = await send("POST", "/flows", {"name": "A", "organismYaml": f"# {canary}"})
    await send("PATCH", f"/flows/{flow['id']}", {"organismYaml": f"changed {canary}"})
    await send(
        "PATCH", f"/flows/{flow['id']}", {"canvasState": {"nodes": [{"id": canary, "position": {}, "data": {}}]}}
    )
    await send("POST", f"/flows/{flow['id']}/versions/1/restore")
    path = f"/flows/{flow['id']}/triggers"
    webhook = await send("POST", path, {"type": "webhook", "name": "W", "config": {canary: canary}})
    renewed = await send("POST", f"{path}/{webhook['id']}/regenerate-token")
    await send("PATCH", f"{path}/{webhook['id']}", {"name": "X", "config": {"key": canary, canary: 1}})
    signing = await send("POST", f"{path}/{webhook['id']}/signing-secrets", {"secret": canary})
    signing_secret = await send("POST", f"{path}/{webhook['id']}/signing-secrets")
    secrets.append(signing_secret["secret"])
    await send("DELETE", f"{path}/{webhook['id']}/signing-secrets/{signing['id']}")
    await send("DELETE", f"{path}/{webhook['id']}")
    secrets += [webhook["webhookToken"], renewed["webhookToken"]]
    await send("POST", "/secrets", {"name": "NEW", "value": canary})
    await send("PUT", "/secrets/NEW", {"value": f"{canary} 2"})
    await send("DELETE", "/secrets/NEW")
    await send("POST", "/llm/keys", {"provider": "together", "apiKey": canary})
    await send("DELETE", "/llm/keys/together")
    created = await send("POST", "/api-keys", {"name": "A", "scopes": ["read"]})
    await send("DELETE", f"/api-keys/{created['id']}")
    await send("DELETE", f"/flows/{flow['id']}")
    secrets += [created["key"], created["hint"]]
    hashes = [row.hex() for row in await session.scalars(sa.select(ApiKeyRecord.key_hash))]
    rows = (await session.execute(sa.select(AuditEventRecord.__table__))).all()
    assert len(rows) == 20
    text = repr(rows)
    assert not [secret for secret in (*secrets, *hashes) if secret in text]


async def test_first_sign_in_records_the_new_user(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk
) -> None:
    for _ in range(2):
        response = await client.get(f"{API}/me", headers={**clerk.headers("user_new"), "X-Request-Id": "r-1"})
        assert response.status_code == 200
    [event] = await all_events(session)
    user_id = response.json()["id"]
    assert (event.action, event.resource_id, event.actor_id) == ("user.created", user_id, user_id)
    assert (event.address, event.request_id, event.after) == ("127.0.0.1", "r-1", {"tier": "free"})


async def test_user_of_an_overridden_sign_in_is_the_actor(
    client: httpx.AsyncClient, session: AsyncSession, owner: UserRecord
) -> None:
    app.dependency_overrides[get_current_user] = lambda: CurrentUser(owner, {})
    assert (await client.post(f"{API}/flows", json={"name": "A"})).status_code == 201
    [event] = await all_events(session)
    assert (event.actor, event.actor_id, event.user_id, event.address) == ("user", str(owner.id), owner.id, None)


async def test_key_that_is_restricted_to_flows_cannot_read_the_log(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, owner: UserRecord
) -> None:
    flow = await factories.create_flow(session, owner, status=FlowStatus.STOPPED)
    _, headers = await key_of(session, owner, flow_ids=[flow.id])
    refused = await client.get(f"{API}/audit", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "flow_restricted")
