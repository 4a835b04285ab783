"""Webhooks whose senders are verified, and repeated calls of webhooks, on both routes that receive webhooks."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.enums import FlowStatus
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    IdempotencyKeyRecord,
    SecretRecord,
    SigningSecretRecord,
    TriggerRecord,
    UsageRecord,
    UserRecord,
)
from tests.api.contract import API, assert_problem, covers
from tests.api.webhook_sender import BODY, GITHUB, count, webhook
from tests.clerk import override_settings
from tests.statements import count_statements

INVALID = (401, "invalid_signature", "The signature of the webhook is missing or invalid")


@pytest.fixture(autouse=True)
def encryption_key() -> Iterator[None]:
    with override_settings(API_KEY_ENCRYPTION_KEY="a-key-of-an-operator-93d4a86b1f7c"):
        yield


class TestSignature:
    @covers("webhooks.signature", "signing-secrets.create")
    async def test_signed_request_starts_an_execution(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database, GITHUB)
        accepted = await made.send()
        assert (accepted.status_code, accepted.json()["status"]) == (200, "accepted")
        assert made.trigger["config"] == {"signature": GITHUB}

    @covers("webhooks.signature.invalid")
    async def test_unsigned_request_starts_nothing(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database, GITHUB)
        wrong = {"X-Hub-Signature-256": "sha256=" + "00" * 32}
        for headers in ({}, wrong, made.signature(b"another body")):
            for query in ("", "?wait=1"):
                refused = await caller.post(made.url + query, content=BODY, headers=headers)
                assert_problem(refused, *INVALID)
                assert refused.headers["WWW-Authenticate"] == "Signature"
        for table in (ExecutionRecord, UsageRecord, IdempotencyKeyRecord):
            assert await count(live_database, table) == 0

    @pytest.mark.parametrize(
        ("scheme", "challenge"),
        [
            ({"scheme": "basic", "username": "ada"}, 'Basic realm="webhook", charset="UTF-8"'),
            ({"scheme": "bearer"}, "Bearer"),
        ],
    )
    async def test_credentials_in_the_authorization_header(
        self, caller: httpx.AsyncClient, live_database: Database, scheme: dict[str, Any], challenge: str
    ) -> None:
        made = await webhook(caller, live_database, scheme, "the-password-ü")
        refused = await caller.post(made.url)
        assert_problem(refused, *INVALID)
        assert refused.headers["WWW-Authenticate"] == challenge
        basic = b"Basic " + base64.b64encode("ada:the-password-ü".encode())
        value = basic if scheme["scheme"] == "basic" else "Bearer the-password-ü".encode()
        headers: Any = {"Authorization": value}
        assert (await caller.post(made.url, headers=headers)).status_code == 200

    async def test_signature_is_checked_before_the_state_of_the_flow(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        """Only the sender learns the state."""
        made = await webhook(caller, live_database, GITHUB)
        async with live_database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.STOPPED))
        assert_problem(await caller.post(made.url), *INVALID)
        assert_problem(await made.send(), 400, "flow_not_running", "Flow is not running (status: stopped)")

    async def test_bytes_that_are_not_text_are_verified(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database, GITHUB)
        for body in (b"", b"\xff\x00", b'{ "a":1 }\n', b"x" * 100_000):
            assert (await made.send(body)).status_code == 200

    @pytest.mark.parametrize("stored", [[], 5, "x", {"signature": "x"}])
    async def test_config_that_is_not_an_object_does_not_affect_other_webhooks(
        self, caller: httpx.AsyncClient, live_database: Database, stored: Any
    ) -> None:
        bad, good = await webhook(caller, live_database), await webhook(caller, live_database)
        async with live_database.transaction() as session:
            change = sa.update(TriggerRecord).where(TriggerRecord.id == UUID(bad.trigger["id"]))
            await session.execute(change.values(config=stored))
        answers = await asyncio.gather(*(one.send() for one in (good, bad, good, bad)))
        assert [answer.status_code for answer in answers] == [200, 401, 200, 401]

    @pytest.mark.parametrize("stored", [{"scheme": "unknown"}, "github", {"scheme": "github", "x": 1}, True, 0])
    async def test_invalid_signature_in_a_stored_config_rejects_every_request(
        self, caller: httpx.AsyncClient, live_database: Database, stored: Any
    ) -> None:
        made = await webhook(caller, live_database, GITHUB)
        async with live_database.transaction() as session:
            await session.execute(sa.update(TriggerRecord).values(config={"signature": stored}))
        assert_problem(await made.send(), *INVALID)
        assert (await made.deliveries())[0]["message"] == "The signature in the config of the webhook is invalid"

    @covers("triggers.signature.invalid")
    async def test_invalid_signature_is_refused_by_create_and_change(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database)
        body = {"type": "webhook", "name": "x", "config": {"signature": {"scheme": "stripe", "tolerance_seconds": 0}}}
        flow_path = made.path.rpartition("/")[0]
        expected = {"body.config.signature.tolerance_seconds": "Input should be greater than or equal to 1"}
        for answer in (
            await caller.post(flow_path, json=body),
            await caller.patch(made.path, json={"config": body["config"]}),
        ):
            assert (answer.status_code, answer.json()["details"]) == (422, expected)
        other = await caller.post(flow_path, json=body | {"type": "manual"})
        assert (other.status_code, other.json()["config"]) == (201, body["config"])


class TestSigningSecrets:
    @covers("signing-secrets.create", "signing-secrets.list", "signing-secrets.delete", "signing-secrets.limit")
    async def test_two_secrets_are_valid_during_a_rotation(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database, GITHUB)
        path = f"{made.path}/signing-secrets"
        old = made.secret
        created = (await caller.post(path, json={"secret": "the-next-secret-of-the-sender"})).json()
        assert created["hint"] == "nder"
        refused = await caller.post(path)
        assert_problem(
            refused, 409, "signing_secrets_limit", "A webhook has at most 2 signing secrets. Delete one first."
        )
        listed = (await caller.get(path)).json()
        assert [sorted(one) for one in listed] == [["createdAt", "hint", "id"]] * 2
        for secret in (old, "the-next-secret-of-the-sender"):
            made.secret = secret
            assert (await made.send()).status_code == 200
        assert (await caller.delete(f"{path}/{listed[0]['id']}")).status_code == 204
        assert_problem(
            await caller.delete(f"{path}/{listed[0]['id']}"),
            404,
            "signing_secret_not_found",
            "Signing secret not found",
        )
        made.secret = old
        assert (await made.send()).status_code == 401
        made.secret = "the-next-secret-of-the-sender"
        assert (await made.send()).status_code == 200

    @covers("webhooks.signature.secret")
    async def test_named_secret_of_the_user_is_valid(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database, GITHUB | {"secret": "SHOP"})
        async with live_database.transaction() as session:
            await session.execute(sa.delete(SigningSecretRecord))
        made.secret = "a-secret-of-the-user"
        assert (await made.send()).status_code == 401
        assert (await made.deliveries())[0][
            "message"
        ] == "The webhook has no signing secret that the server can decrypt and its scheme can use"
        assert (await caller.put(f"{API}/secrets/SHOP", json={"value": made.secret})).status_code == 200
        assert (await made.send()).status_code == 200

    async def test_secret_that_the_scheme_cannot_use_is_refused(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database, {"scheme": "standard-webhooks"})
        refused = await caller.post(f"{made.path}/signing-secrets", json={"secret": "not-of-the-right-form"})
        assert refused.status_code == 422
        assert refused.json()["details"] == {
            "body.secret": "the secret must be whsec_ and the base64 of 24 to 64 bytes"
        }
        assert "not-of-the-right-form" not in refused.text

    async def test_secrets_are_stored_encrypted(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database, GITHUB, "canary-5d1e0f7a")
        async with live_database.sessions() as session:
            row = (await session.scalars(sa.select(SigningSecretRecord))).one()
        assert row.ciphertext.startswith("v1.")
        assert "canary" not in f"{row.ciphertext} {row.hint}"
        assert "canary" not in (await caller.get(f"{made.path}/signing-secrets")).text
        assert "canary" not in (await caller.get(made.path)).text

    async def test_other_triggers_have_no_signing_secrets(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database)
        body = {"type": "manual", "name": "x", "config": {}}
        other = (await caller.post(made.path.rpartition("/")[0], json=body)).json()
        answer = await caller.post(f"{API}/flows/{other['flowId']}/triggers/{other['id']}/signing-secrets")
        assert_problem(answer, 400, "trigger_not_a_webhook", "Only webhooks have signing secrets")

    async def test_server_without_an_encryption_key_rejects_signed_requests(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database, GITHUB)
        with override_settings(API_KEY_ENCRYPTION_KEY="short"):
            assert (await made.send()).status_code == 401
            assert (await caller.post(f"{made.path}/signing-secrets")).status_code == 503

    async def test_secret_of_another_webhook_or_a_user_cannot_be_used(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        """The ciphertext is bound to its row."""
        made = await webhook(caller, live_database, GITHUB)
        async with live_database.transaction() as session:
            row = (await session.scalars(sa.select(SigningSecretRecord))).one()
            user_id = await session.scalar(sa.select(UserRecord.id))
            session.add(SecretRecord(user_id=user_id, name="SHOP", ciphertext=row.ciphertext))
            await session.delete(row)
            await session.flush()
            session.add(SigningSecretRecord(trigger_id=row.trigger_id, hint="", ciphertext=row.ciphertext))
            await session.execute(sa.update(TriggerRecord).values(config={"signature": GITHUB | {"secret": "SHOP"}}))
        assert_problem(await made.send(), *INVALID)


class TestIdempotencyKey:
    @covers("webhooks.idempotency-key")
    @pytest.mark.parametrize("signature", [None, GITHUB])
    async def test_repeated_call_returns_the_first_execution(
        self, caller: httpx.AsyncClient, live_database: Database, signature: dict[str, Any] | None
    ) -> None:
        made = await webhook(caller, live_database, signature)
        first = await made.send(Idempotency_Key="a-key")
        assert "Idempotent-Replayed" not in first.headers
        async with live_database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.STOPPED))
        second = await made.send(Idempotency_Key="a-key")
        assert (second.status_code, second.json()) == (200, first.json())
        assert second.headers["Idempotent-Replayed"] == "true"
        assert await count(live_database) == 1
        async with live_database.transaction() as session:
            assert await session.scalar(sa.select(sa.func.sum(UsageRecord.workflow_runs))) == 1
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.RUNNING))
        assert (await made.send(Idempotency_Key="another")).json() != first.json()
        assert (await made.send()).json() != first.json()

    @covers("webhooks.idempotency-key.other-body")
    async def test_key_with_another_body_is_refused(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database)
        assert (await made.send(Idempotency_Key="a-key")).status_code == 200
        refused = await made.send(b"another", Idempotency_Key="a-key")
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
        assert await count(live_database) == 1

    async def test_keys_belong_to_a_webhook(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        for _ in range(2):
            made = await webhook(caller, live_database)
            assert "Idempotent-Replayed" not in (await made.send(Idempotency_Key="a-key")).headers
        assert await count(live_database) == 2

    async def test_empty_key_is_refused(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database)
        refused = await made.send(Idempotency_Key="")
        assert refused.json()["details"] == {"header.Idempotency-Key": "Must not be empty"}
        assert refused.status_code == 422

    async def test_key_expires(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database)
        first = await made.send(Idempotency_Key="a-key")
        async with live_database.transaction() as session:
            await session.execute(sa.update(IdempotencyKeyRecord).values(created_at=now() - timedelta(days=7)))
        assert (await made.send(b"another", Idempotency_Key="a-key")).json() != first.json()

    async def test_parallel_calls_start_one_execution(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database)
        answers = await asyncio.gather(*(made.send(Idempotency_Key="a-key") for _ in range(60)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["executionId"] for answer in answers}) == 1
        assert await count(live_database) == 1

    async def test_rejected_call_does_not_use_its_key(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database)
        async with live_database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.STOPPED))
        assert (await made.send(Idempotency_Key="a-key")).status_code == 400
        async with live_database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.RUNNING))
        assert "Idempotent-Replayed" not in (await made.send(Idempotency_Key="a-key")).headers

    async def test_repeated_call_waits_for_the_first_execution(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database)
        first = await made.send(Idempotency_Key="a-key")
        headers = {"Idempotency-Key": "a-key"}
        waited = await caller.post(made.url + "?wait=0.01", content=BODY, headers=headers)
        assert (waited.status_code, waited.json()["executionId"]) == (202, first.json()["executionId"])
        assert waited.headers["Idempotent-Replayed"] == "true"
        async with live_database.transaction() as session:
            await session.execute(sa.delete(ExecutionRecord))
        gone = await caller.post(made.url + "?wait=0.01", content=BODY, headers=headers)
        assert_problem(gone, 404, "execution_not_found", "Execution not found")


class TestSendersIds:
    @covers("webhooks.deduplicate")
    async def test_repeated_delivery_of_the_sender_returns_the_first_execution(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database, GITHUB | {"deduplicate": True})
        first = await made.send(X_GitHub_Delivery="d-1")
        second = await made.send(b'{"attempt": 2}', X_GitHub_Delivery="d-1")
        assert second.json() == first.json()
        assert second.headers["Idempotent-Replayed"] == "true"
        assert (await made.send(X_GitHub_Delivery="d-2")).json() != first.json()
        unsigned = await caller.post(made.url, content=BODY, headers={"X-GitHub-Delivery": "d-1"})
        assert_problem(unsigned, *INVALID)

    async def test_idempotency_key_does_not_replace_the_id_of_the_sender(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        """Otherwise whoever recorded a request could repeat it with other keys."""
        made = await webhook(caller, live_database, GITHUB | {"deduplicate": True})
        answers = [await made.send(X_GitHub_Delivery="d-1")]
        answers += [await made.send(X_GitHub_Delivery="d-1", Idempotency_Key=key) for key in ("k1", "k2")]
        assert len({answer.json()["executionId"] for answer in answers}) == 1

    async def test_ids_are_ignored_without_the_option_or_the_signature(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        for signature in (GITHUB, None):
            made = await webhook(caller, live_database, signature)
            ids = {(await made.send(X_GitHub_Delivery="d-1")).json()["executionId"] for _ in range(3)}
            assert len(ids) == 3


async def test_webhook_without_signature_and_key_executes_no_more_statements(
    caller: httpx.AsyncClient, live_database: Database, request: pytest.FixtureRequest
) -> None:
    made = await webhook(caller, live_database)
    await made.send()
    with count_statements(live_database.engine) as statements:
        assert (await made.send()).status_code == 200
    if "own" in request.node.callspec.id:
        assert len(statements) == (3 if live_database.is_sqlite else 2)
