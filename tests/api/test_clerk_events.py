"""`POST /webhooks/clerk`: signatures, hostile bodies, and users who are deleted at Clerk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.enums import Scope
from bloxserver.models.tables import AuditEventRecord, DeletedUserRecord, UserRecord
from bloxserver.services.api_keys import NewKey, create_api_key
from tests import factories
from tests.api.contract import API, assert_problem, covers
from tests.api.operations import AUTHENTICATED, call, ids_of
from tests.clerk import Clerk, clerk_authentication, override_settings
from tests.clerk_events import ADA, NEXT_SECRET, SECRET, created, deleted, event, signed, updated

URL = "/webhooks/clerk"
NOT_SIGNED = (400, "invalid_signature", "The signature of the webhook is missing or invalid")
DELETED = (401, "account_deleted", "The account was deleted")


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        with override_settings(CLERK_WEBHOOK_SECRET=SECRET):
            yield clerk


async def send(client: httpx.AsyncClient, body: bytes, **changes: Any) -> httpx.Response:
    return await client.post(URL, content=body, headers=signed(body, **changes))


async def users(session: AsyncSession) -> list[UserRecord]:
    return list(await session.scalars(sa.select(UserRecord).execution_options(populate_existing=True)))


async def tombstones(session: AsyncSession) -> list[str]:
    return list(await session.scalars(sa.select(DeletedUserRecord.identity)))


@covers("clerk-events.disabled")
async def test_without_a_secret_it_is_an_unknown_webhook(client: httpx.AsyncClient, session: AsyncSession) -> None:
    for body in (created(), b""):
        response = await client.post(URL, content=body, headers=signed(body))
        assert_problem(response, 404, "webhook_not_found", "Webhook not found")
    assert await users(session) == []


@covers("clerk-events.profile")
async def test_event_creates_and_changes_the_user(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk
) -> None:
    response = await send(client, created())
    assert (response.status_code, response.json()) == (200, {"status": "received"})
    [user] = await users(session)
    assert (user.clerk_id, user.email, user.name) == (ADA, "ada1000@example.com", "Ada Lovelace")
    me = (await client.get(f"{API}/me", headers=clerk.headers(ADA))).json()
    assert (me["id"], me["email"]) == (str(user.id), user.email)
    assert (await send(client, updated(2_000))).status_code == 200
    assert (await client.get(f"{API}/me", headers=clerk.headers(ADA))).json()["email"] == "ada2000@example.com"
    recorded = (await session.scalars(sa.select(AuditEventRecord))).one()
    assert (recorded.actor, recorded.actor_id, recorded.address) == ("identity_provider", "clerk", "127.0.0.1")
    assert (await client.post("/webhooks/%63lerk", content=b"")).status_code == 400


def _without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


BODY = created()
SIGNATURES: dict[str, Any] = {
    "none": lambda good: {},
    "no id": lambda good: _without(good, "svix-id"),
    "no timestamp": lambda good: _without(good, "svix-timestamp"),
    "no signature": lambda good: _without(good, "svix-signature"),
    "another id": lambda good: good | {"svix-id": "msg_other"},
    "another secret": lambda good: signed(BODY, NEXT_SECRET),
    "another body": lambda good: signed(deleted()),
    "too old": lambda good: signed(BODY, at=now() - timedelta(seconds=330)),
    "too new": lambda good: signed(BODY, at=now() + timedelta(seconds=330)),
    "another version": lambda good: good | {"svix-signature": good["svix-signature"].replace("v1,", "v2,")},
    "no version": lambda good: good | {"svix-signature": good["svix-signature"].removeprefix("v1,")},
    **{
        f"timestamp {text!r}": lambda good, text=text: good | {"svix-timestamp": text}
        for text in ("nan", "1e400", "-1", "")
    },
    **{
        f"signature {text!r}": lambda good, text=text: good | {"svix-signature": text}
        for text in ("  ", "v1", "v1,", "v1,abc", "v1,a,b", "v1,====", ",", "v1," + "A" * 5_000)
    },
    "not ASCII": lambda good: good | {"svix-signature": b"v1,\xff\xfe"},
}  # fmt: skip


@covers("clerk-events.signature")
@pytest.mark.parametrize("name", SIGNATURES)
async def test_invalid_signature_is_refused_and_writes_nothing(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, name: str
) -> None:
    response = await client.post(URL, content=BODY, headers=SIGNATURES[name](signed(BODY)))
    assert_problem(response, *NOT_SIGNED)
    assert await users(session) == []
    assert await tombstones(session) == []


async def test_both_secrets_are_valid_during_a_rotation(client: httpx.AsyncClient, clerk: Clerk) -> None:
    with override_settings(CLERK_WEBHOOK_SECRET=f"{SECRET}, {NEXT_SECRET}"):
        for secret in (SECRET, NEXT_SECRET):
            assert (await send(client, created(), secret=secret)).status_code == 200
    assert_problem(await send(client, created(), secret=NEXT_SECRET), *NOT_SIGNED)


async def test_headers_of_standard_webhooks_are_accepted(client: httpx.AsyncClient, clerk: Clerk) -> None:
    headers = {name.replace("svix", "webhook"): value for name, value in signed(BODY).items()}
    assert (await client.post(URL, content=BODY, headers=headers)).status_code == 200


HOSTILE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"17",
    b'"user.deleted"',
    b"{}",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b'{"type": null, "data": {}}',
    b'{"type": "user.deleted"}',
    b'{"type": "user.deleted", "data": []}',
    b'{"type": "user.deleted", "data": {"id": "user_\\u0000"}}',
    b'{"type": "user.deleted", "data": {"id": "user_\\ud800"}}',
    b'{"type": "user.deleted", "data": {"id": "user_1", "n": NaN}}',
    b'{"type": "user.deleted", "data": {"id": "user_1", "n": Infinity}}',
    b'{"type": "user.deleted", "data": {"id": "user_1", "n": 1e999}}',
    b'{"type": "user.deleted", "data": {"id": "user_1", "n": ' + b"9" * 5_000 + b"}}",
    b'{"type": "user.deleted", "data": {"id": "user_1", "n": ' + b"[" * 100 + b"]" * 100 + b"}}",
    b"[" * 200_000,
    b'{"a":' * 200_000,
    event("user.updated", {"id": ADA}),
]


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: ascii(body[:60]))
async def test_signed_body_that_is_no_event_is_refused(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, body: bytes
) -> None:
    response = await send(client, body)
    assert response.status_code in (400, 422), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert await tombstones(session) == []


async def test_large_body_is_refused(client: httpx.AsyncClient, clerk: Clerk) -> None:
    with override_settings(MAX_BODY_BYTES="100"):
        assert (await send(client, created())).status_code == 413


@covers("clerk-events.deleted", "identity.deleted")
async def test_token_of_a_deleted_user_is_refused_by_every_operation(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk
) -> None:
    """Hot routes know the id of the user from an earlier request."""
    user = await factories.create_user(session, clerk_id=ADA)
    ids = await ids_of(session, user)
    for path in ("me", "flows", "executions"):
        assert (await client.get(f"{API}/{path}", headers=clerk.headers(ADA))).status_code == 200
    assert (await send(client, deleted())).status_code == 200
    for name in AUTHENTICATED:
        assert_problem(await call(client, name, ids, clerk.headers(ADA)), *DELETED)
    await session.execute(sa.delete(UserRecord))  # as the purge does
    await session.commit()
    for name in AUTHENTICATED:
        assert_problem(await call(client, name, ids, clerk.headers(ADA)), *DELETED)
    assert await users(session) == []
    assert await tombstones(session) == [ADA]


async def test_key_of_a_deleted_user_is_refused(client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk) -> None:
    """The process remembers the key for a second after it was read."""
    user = await factories.create_user(session, clerk_id=ADA)
    _, key = await create_api_key(session, user.id, NewKey("key", [*Scope]))
    await session.commit()
    headers = {"Authorization": f"Bearer {key}"}
    for path in ("me", "flows"):
        assert (await client.get(f"{API}/{path}", headers=headers)).status_code == 200
    assert (await send(client, deleted())).status_code == 200
    for path in ("me", "flows"):
        assert (await client.get(f"{API}/{path}", headers=headers)).status_code == 401


async def test_webhook_of_a_deleted_user_is_unknown(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk
) -> None:
    user = await factories.create_user(session, clerk_id=ADA)
    flow = await factories.create_flow(session, user)
    trigger = await factories.create_trigger(session, flow, previous_token="the-token-before")
    tokens = [trigger.webhook_token, "the-token-before"]
    await send(client, deleted())
    for token in tokens:
        assert (await client.post(f"/webhooks/{token}")).status_code == 404


@covers("clerk-events.repeated")
async def test_concurrent_deliveries_have_one_effect(
    live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
) -> None:
    bodies = [body for body in (created(), updated(2_000), updated(3_000)) for _ in range(7)][:20]
    responses = await asyncio.gather(*(send(live_client, body) for body in bodies))
    assert {response.status_code for response in responses} == {200}
    async with live_database.transaction(read_only=True) as session:
        assert [user.email for user in await users(session)] == ["ada3000@example.com"]
    responses = await asyncio.gather(*(send(live_client, deleted()) for _ in range(20)))
    assert {response.status_code for response in responses} == {200}
    async with live_database.transaction(read_only=True) as session:
        assert [user.deleted_at is not None for user in await users(session)] == [True]
        actions = list(await session.scalars(sa.select(AuditEventRecord.action).order_by(AuditEventRecord.id)))
        assert actions == ["user.created", "user.deleted"]
        assert await tombstones(session) == [ADA]


@covers("clerk-events.deleted")
async def test_sign_in_during_a_deletion_leaves_no_user(
    live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
) -> None:
    for number in range(10):
        clerk_id = f"user_{number}"
        headers = clerk.headers(clerk_id)
        answers = await asyncio.gather(
            *(live_client.get(f"{API}/{path}", headers=headers) for path in ("me", "flows", "usage")),
            *(send(live_client, deleted(clerk_id)) for _ in range(2)),
            send(live_client, created(1_000, clerk_id)),
        )
        assert {answer.status_code for answer in answers} <= {200, 401}
        assert_problem(await live_client.get(f"{API}/me", headers=headers), *DELETED)
    async with live_database.transaction(read_only=True) as session:
        assert [user for user in await users(session) if user.deleted_at is None] == []
