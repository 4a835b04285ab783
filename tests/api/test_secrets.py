"""Secrets over HTTP: created, replaced, listed, deleted, and never returned."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.schemas import CreateSecretRequest, SetSecretRequest
from bloxserver.encryption import SecretCipher, get_cipher
from bloxserver.models.database import Database
from bloxserver.models.tables import SecretRecord, UserRecord
from bloxserver.plans import PLANS
from bloxserver.settings import get_settings
from tests import factories
from tests.api.contract import API, UTC_TIME, assert_invalid, assert_problem, covers
from tests.clerk import Clerk, clerk_authentication, override_settings

SECRETS = f"{API}/secrets"
JSON = {"Content-Type": "application/json"}
CANARY = "canary7f3a9e51"
KEY = "a-key-of-an-operator-93d4a86b1f7c"
MISSING_KEY = "This server cannot store secrets: its API_KEY_ENCRYPTION_KEY must be set to a key of at least 32 bytes"


@pytest.fixture(autouse=True)
def encryption_key() -> Iterator[None]:
    with override_settings(API_KEY_ENCRYPTION_KEY=KEY):
        yield


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        yield clerk


async def stored(session: AsyncSession) -> list[SecretRecord]:
    statement = sa.select(SecretRecord).order_by(SecretRecord.name).execution_options(populate_existing=True)
    records = list(await session.scalars(statement))
    await session.commit()
    return records


def opened(record: SecretRecord) -> str:
    cipher = get_cipher(get_settings())
    assert cipher is not None
    return cipher.decrypt(record.ciphertext, owner=record.user_id, name=record.name)


@covers("secrets.write")
class TestWrite:
    @pytest.mark.parametrize("value", ["x", CANARY, "ä🌍\n\t\"' {{ payload }}", "🌍" * 8192])
    async def test_put_creates_and_replaces(self, client: httpx.AsyncClient, session: AsyncSession, value: str) -> None:
        first = await client.put(f"{SECRETS}/SHOP_TOKEN", json={"value": "before"})
        second = await client.put(f"{SECRETS}/SHOP_TOKEN", json={"value": value})
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.json().keys() == second.json().keys() == {"name", "createdAt", "updatedAt"}
        assert first.json()["createdAt"] == first.json()["updatedAt"] == second.json()["createdAt"]
        assert second.json()["updatedAt"] > first.json()["updatedAt"]
        assert all(UTC_TIME.fullmatch(second.json()[name]) for name in ("createdAt", "updatedAt"))
        (record,) = await stored(session)
        assert opened(record) == value
        assert record.ciphertext.startswith(SecretCipher([KEY]).prefix)

    async def test_post_creates_and_does_not_replace(self, client: httpx.AsyncClient, session: AsyncSession) -> None:
        created = await client.post(SECRETS, json={"name": "TOKEN", "value": CANARY})
        assert created.status_code == 201
        assert created.json() == (await client.get(SECRETS)).json()[0]
        again = await client.post(SECRETS, json={"name": "TOKEN", "value": "another"})
        assert_problem(again, 409, "secret_exists", "There is a secret called TOKEN already")
        (record,) = await stored(session)
        assert opened(record) == CANARY
        assert (await client.post(SECRETS, json={"name": "token", "value": "x"})).status_code == 201

    @pytest.mark.parametrize("name", ["a", "_", "A1_b", "x" * 64])
    async def test_valid_names_are_accepted(self, client: httpx.AsyncClient, name: str) -> None:
        assert (await client.put(f"{SECRETS}/{name}", json={"value": "x"})).json()["name"] == name
        assert (await client.post(SECRETS, json={"name": name, "value": "x"})).status_code == 409

    @pytest.mark.parametrize("name", ["1", "x" * 65, "a-b", "a.b", "a b", "é", "a\n", "\n", "\u0430", "{{a}}", "a%00"])
    async def test_invalid_names_are_rejected(
        self, client: httpx.AsyncClient, session: AsyncSession, name: str
    ) -> None:
        path = f"{SECRETS}/{name.replace('%', '%25').replace(chr(10), '%0A')}"
        assert_invalid(await client.put(path, json={"value": CANARY}), "path.name")
        assert_invalid(await client.delete(path), "path.name")
        assert_invalid(await client.post(SECRETS, json={"name": name, "value": CANARY}), "body.name")
        assert await stored(session) == []

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "body.value"),
            ({"value": None}, "body.value"),
            ({"value": ""}, "body.value"),
            ({"value": f"{CANARY}{'x' * 8192}"}, "body.value"),
            ({"value": 1234567}, "body.value"),
            ({"value": {CANARY: CANARY}}, "body.value"),
            ({"value": [CANARY]}, "body.value"),
            ({"value": f"{CANARY}\0"}, "body"),
            ({"value": f"{CANARY}\ud800"}, "body"),
            ({CANARY: f"{CANARY}\0"}, "body.value"),
            (CANARY, "body"),
            ([CANARY], "body"),
        ],
    )
    async def test_invalid_values_are_rejected_and_not_repeated(
        self, client: httpx.AsyncClient, session: AsyncSession, body: Any, field: str
    ) -> None:
        response = await client.put(f"{SECRETS}/A", content=json.dumps(body), headers=JSON)
        assert_invalid(response, field)
        assert CANARY not in response.text
        if isinstance(body, dict):
            created = await client.post(SECRETS, content=json.dumps({"name": "A"} | body), headers=JSON)
            assert_invalid(created, field)
            assert CANARY not in created.text
        broken = await client.put(f"{SECRETS}/A", content=f'{{"value": "{CANARY}', headers=JSON)
        assert broken.status_code == 422
        assert CANARY not in broken.text
        assert await stored(session) == []

    async def test_number_of_secrets_is_limited(
        self, client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
    ) -> None:
        limit = PLANS["pro"].secrets
        session.add_all(SecretRecord(user_id=dev_user.id, name=f"S{number}") for number in range(limit))
        await session.commit()
        message = "The limit of 500 secrets is reached (in use: 500). Delete one that is no longer used, or upgrade."
        details = {"name": "secrets", "limit": 500, "used": 500}
        for refused in (
            await client.put(f"{SECRETS}/MORE", json={"value": "x"}),
            await client.post(SECRETS, json={"name": "MORE", "value": "x"}),
        ):
            assert_problem(refused, 403, "secret_limit_reached", message, details)
        assert len(await stored(session)) == limit
        assert (await client.put(f"{SECRETS}/S7", json={"value": "x"})).status_code == 200
        assert (await client.post(SECRETS, json={"name": "S7", "value": "x"})).status_code == 409
        assert (await client.delete(f"{SECRETS}/S8")).status_code == 204
        assert (await client.post(SECRETS, json={"name": "MORE", "value": "x"})).status_code == 201

    @pytest.mark.parametrize("key", ["", "change-me", f"{KEY},short"])
    async def test_write_without_encryption_key_gets_503(
        self, client: httpx.AsyncClient, session: AsyncSession, key: str
    ) -> None:
        assert (await client.put(f"{SECRETS}/A", json={"value": CANARY})).status_code == 200
        with override_settings(API_KEY_ENCRYPTION_KEY=key):
            for refused in (
                await client.put(f"{SECRETS}/A", json={"value": "other"}),
                await client.post(SECRETS, json={"name": "B", "value": "other"}),
            ):
                assert_problem(refused, 503, "secrets_not_configured", MISSING_KEY)
            assert [secret["name"] for secret in (await client.get(SECRETS)).json()] == ["A"]
            (record,) = await stored(session)
            assert (await client.delete(f"{SECRETS}/A")).status_code == 204
        assert opened(record) == CANARY


@covers("secrets.list")
async def test_list_is_sorted_by_name_and_has_no_values(client: httpx.AsyncClient) -> None:
    assert (await client.get(SECRETS)).json() == []
    for name in ("b", "_", "B", "a", "A1", "A_"):
        await client.put(f"{SECRETS}/{name}", json={"value": f"{CANARY}{name}"})
    response = await client.get(SECRETS)
    assert [secret["name"] for secret in response.json()] == ["A1", "A_", "B", "_", "a", "b"]
    assert all(secret.keys() == {"name", "createdAt", "updatedAt"} for secret in response.json())
    assert CANARY not in response.text
    assert (await client.get(f"{SECRETS}/a")).status_code == 405


@covers("secrets.delete")
async def test_deleted_secret_is_removed(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await client.put(f"{SECRETS}/A", json={"value": "x"})
    await client.put(f"{SECRETS}/B", json={"value": "x"})
    deleted = await client.delete(f"{SECRETS}/A")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert [record.name for record in await stored(session)] == ["B"]
    assert_problem(await client.delete(f"{SECRETS}/A"), 404, "secret_not_found", "Secret not found")


async def test_secrets_of_other_users_are_not_visible(
    client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession
) -> None:
    ada, bob = clerk.headers("user_ada"), clerk.headers("user_bob")
    for headers, value in ((ada, "of ada"), (bob, "of bob")):
        assert (await client.put(f"{SECRETS}/SAME", json={"value": value}, headers=headers)).status_code == 200
    await client.post(SECRETS, json={"name": "ADAS", "value": "x"}, headers=ada)
    assert [secret["name"] for secret in (await client.get(SECRETS, headers=bob)).json()] == ["SAME"]
    theirs = await client.delete(f"{SECRETS}/ADAS", headers=bob)
    assert_problem(theirs, 404, "secret_not_found", "Secret not found")
    await client.put(f"{SECRETS}/ADAS", json={"value": "bob's own"}, headers=bob)
    await client.delete(f"{SECRETS}/SAME", headers=bob)
    owners = {user.id: user.clerk_id for user in await session.scalars(sa.select(UserRecord))}
    values = {(owners[record.user_id], record.name): opened(record) for record in await stored(session)}
    assert values == {("user_ada", "SAME"): "of ada", ("user_ada", "ADAS"): "x", ("user_bob", "ADAS"): "bob's own"}


async def test_body_sets_only_the_value(client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord) -> None:
    other = await factories.create_user(session)
    body = {"value": "x", "userId": str(other.id), "user_id": str(other.id), "name": "B", "ciphertext": "y", "id": "z"}
    await client.put(f"{SECRETS}/A", json=body | {"createdAt": "2001-01-01T00:00:00Z"})
    (record,) = await stored(session)
    assert (record.user_id, record.name, record.created_at.year > 2001) == (dev_user.id, "A", True)


class TestValueIsNotRevealed:
    def test_repr_of_a_body_does_not_contain_the_value(self) -> None:
        bodies = [SetSecretRequest(value=CANARY), CreateSecretRequest(name="A", value=CANARY)]  # type: ignore[arg-type]
        assert CANARY not in "".join(f"{body!r}{body}{body.model_dump()}{body.model_dump_json()}" for body in bodies)

    async def test_logs_and_rows_do_not_contain_the_value(
        self,
        live_client: httpx.AsyncClient,
        live_database: Database,
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """For values that are stored, rejected, malformed or too large, and for an unexpected error."""
        caplog.set_level(logging.DEBUG)
        caplog.set_level(logging.WARNING, "httpx")  # the test's own client logs URLs
        sent: list[tuple[str, str, dict[str, Any], int]] = [
            ("PUT", f"{SECRETS}/A", {"json": {"value": CANARY}}, 200),
            ("POST", SECRETS, {"json": {"name": "A", "value": CANARY}}, 409),
            ("POST", SECRETS, {"json": {"name": CANARY + "-", "value": CANARY}}, 422),
            ("PUT", f"{SECRETS}/A", {"json": {"value": CANARY * 1000}}, 422),
            ("PUT", f"{SECRETS}/A", {"json": {"value": CANARY * 200_000}}, 413),
            ("PUT", f"{SECRETS}/A", {"content": f'{{"value": "{CANARY}', "headers": JSON}, 422),
            ("GET", f"{SECRETS}?value={CANARY}", {}, 200),
            ("DELETE", f"{SECRETS}/{CANARY}", {}, 404),
        ]
        answers = [await live_client.request(method, path, **options) for method, path, options, _ in sent]
        assert [answer.status_code for answer in answers] == [status for *_, status in sent]
        async with live_database.transaction() as session:
            rows = repr((await session.execute(sa.select(SecretRecord.__table__))).all())
            await session.execute(sa.text("ALTER TABLE secrets RENAME TO hidden"))
        answers.append(await live_client.put(f"{SECRETS}/A", json={"value": CANARY}))
        assert answers[-1].status_code == 500
        printed = capsys.readouterr()
        output = caplog.text + printed.out + printed.err + rows + "".join(answer.text for answer in answers)
        assert "unhandled exception" in output
        assert CANARY not in output
        assert base64.b64encode(CANARY.encode()).decode().rstrip("=") not in output
