"""Users' own keys for providers over HTTP: tested, stored encrypted, listed, replaced and deleted."""

from __future__ import annotations

from asyncio import StreamWriter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.testing import capture_logs

from bloxserver.encryption import get_cipher
from bloxserver.model_catalogue import BASE_URLS
from bloxserver.models.database import Database
from bloxserver.models.tables import Tier, UserApiKeyRecord, UserRecord
from bloxserver.queries.llm_keys import read_usable_keys
from bloxserver.services.llm_keys import decrypt_llm_key, invalidate_llm_key
from bloxserver.settings import get_settings
from tests import factories
from tests.api.contract import API, UTC_TIME, assert_problem, covers
from tests.clerk import override_settings
from tests.clients.loopback import answer, running_server
from tests.provider_server import VALID_KEYS, ProviderServer

KEYS = f"{API}/llm/keys"
KEY = VALID_KEYS["anthropic"]
BODY = {"provider": "anthropic", "apiKey": KEY}
MEMBERS = {"id", "provider", "keyHint", "isValid", "lastError", "lastUsedAt", "createdAt"}
IDEMPOTENCY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


@pytest.fixture(autouse=True)
def encryption_key() -> Iterator[None]:
    with override_settings(API_KEY_ENCRYPTION_KEY="a-key-of-an-operator-93d4a86b1f7c"):
        yield


async def stored(session: AsyncSession, user_id: Any) -> dict[str, str]:
    """The user's keys, decrypted, by provider."""
    cipher = get_cipher(get_settings())
    assert cipher is not None
    keys = await read_usable_keys(session, user_id)
    await session.commit()
    return {key.provider: decrypt_llm_key(cipher, user_id, key) for key in keys}


@covers("llm-keys.list", "llm-keys.add")
@pytest.mark.parametrize("provider", BASE_URLS)
async def test_key_is_tested_and_stored(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord, providers: ProviderServer, provider: str
) -> None:
    key = VALID_KEYS[provider]
    response = await client.post(KEYS, json={"provider": provider, "apiKey": key})
    assert response.status_code == 201, response.text
    added = response.json()
    assert added.keys() == MEMBERS
    expected = {"provider": provider, "keyHint": "6789", "isValid": True, "lastError": None, "lastUsedAt": None}
    assert added.items() >= expected.items()
    assert UTC_TIME.fullmatch(added["createdAt"])
    assert (await client.get(KEYS)).json() == [added]
    assert [request.key for request in providers.requests] == [key]
    assert await stored(session, dev_user.id) == {provider: key}


async def test_key_replaces_that_of_the_same_provider(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    first = (await client.post(KEYS, json=BODY)).json()
    [key] = await read_usable_keys(session, dev_user.id)
    assert await invalidate_llm_key(session, dev_user.id, key, "rejected the API key")
    await session.commit()
    [shown] = (await client.get(KEYS)).json()
    assert (shown["isValid"], shown["lastError"]) == (False, "rejected the API key")
    second = (await client.post(KEYS, json=BODY | {"apiKey": f"{KEY}-new"})).json()
    assert second.items() >= {"id": first["id"], "keyHint": "-new", "isValid": True, "lastError": None}.items()
    assert second["createdAt"] > first["createdAt"]
    assert await stored(session, dev_user.id) == {"anthropic": f"{KEY}-new"}


@covers("llm-keys.rejected")
@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        ("sk-ant-status-401-0123456789", 400, "invalid_provider_key"),
        ("sk-ant-status-403-0123456789", 400, "invalid_provider_key"),
        ("sk-ant-status-500-0123456789", 503, "provider_unavailable"),
        ("sk-0123456789-0123456789", 400, "invalid_provider_key"),
        ("sk-ant-0123456789 0123456789", 400, "invalid_provider_key"),
        ("sk-ant-short", 422, "validation_error"),
        (f"sk-ant-{'x' * 300}", 422, "validation_error"),
    ],
)
async def test_key_that_fails_its_test_is_not_stored_or_quoted(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord, key: str, status: int, code: str
) -> None:
    await client.post(KEYS, json=BODY)
    with capture_logs() as logs:
        response = await client.post(KEYS, json=BODY | {"apiKey": key}, headers=IDEMPOTENCY)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert key not in repr((logs, response.text))
    assert await stored(session, dev_user.id) == {"anthropic": KEY}
    # The failed request does not use its Idempotency-Key.
    assert (await client.post(KEYS, json=BODY, headers=IDEMPOTENCY)).status_code == 201


async def test_unknown_provider_is_invalid(client: httpx.AsyncClient, providers: ProviderServer) -> None:
    response = await client.post(KEYS, json=BODY | {"provider": "another"})
    assert (response.status_code, [*response.json()["details"]]) == (422, ["body.provider"])
    assert providers.requests == []


async def test_repeated_request_is_not_tested_again(client: httpx.AsyncClient, providers: ProviderServer) -> None:
    first = await client.post(KEYS, json=BODY, headers=IDEMPOTENCY)
    second = await client.post(KEYS, json=BODY, headers=IDEMPOTENCY)
    assert (second.status_code, second.headers["Idempotent-Replayed"]) == (201, "true")
    assert second.json() == first.json()
    assert len(providers.requests) == 1


@covers("llm-keys.plan")
async def test_free_plan_can_list_and_delete_but_not_add(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord, providers: ProviderServer
) -> None:
    await client.post(KEYS, json=BODY)
    await session.execute(sa.update(UserRecord).values(tier=Tier.FREE))
    await session.commit()
    message = "Your plan does not include own keys for language models. Upgrade to add one."
    assert_problem(await client.post(KEYS, json=BODY), 403, "own_model_keys_not_in_plan", message)
    assert len(providers.requests) == 1
    assert len((await client.get(KEYS)).json()) == 1
    assert (await client.delete(f"{KEYS}/anthropic")).status_code == 204


async def test_server_without_an_encryption_key_does_not_test_the_key(
    client: httpx.AsyncClient, providers: ProviderServer
) -> None:
    with override_settings(API_KEY_ENCRYPTION_KEY=""):
        response = await client.post(KEYS, json=BODY)
    assert (response.status_code, response.json()["code"]) == (503, "secrets_not_configured")
    assert providers.requests == []


@covers("llm-keys.delete")
async def test_deleted_key_is_gone(client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord) -> None:
    other = await factories.create_user(session)
    session.add(UserApiKeyRecord(user_id=other.id, provider="anthropic"))
    await session.commit()
    await client.post(KEYS, json=BODY)
    response = await client.delete(f"{KEYS}/anthropic")
    assert (response.status_code, response.content) == (204, b"")
    assert_problem(await client.delete(f"{KEYS}/anthropic"), 404, "llm_key_not_found", "LLM key not found")
    assert (await client.get(KEYS)).json() == []
    assert list(await session.scalars(sa.select(UserApiKeyRecord.user_id))) == [other.id]


async def test_no_transaction_is_open_while_the_provider_responds(
    live_client: httpx.AsyncClient, live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile another request writes, which an open transaction would block on SQLite."""

    async def respond(writer: StreamWriter) -> None:
        assert live_database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        async with live_database.sessions() as session:
            await factories.create_user(session)
        writer.write(answer(b"{}"))

    async with running_server() as server:
        server.answers["/v1/models"] = respond
        monkeypatch.setitem(BASE_URLS, "anthropic", server.url(""))
        response = await live_client.post(KEYS, json=BODY, headers=IDEMPOTENCY)
    assert response.status_code == 201, response.text
