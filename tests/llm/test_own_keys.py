"""Calls with users' own keys: used first, never sent elsewhere, and invalid after a rejection."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from asyncio import StreamWriter
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from bloxserver.clients import llm
from bloxserver.clients.model_errors import ModelError
from bloxserver.clock import now
from bloxserver.llm import own_keys
from bloxserver.llm.breaker import FAILURES
from bloxserver.llm.own_keys import MAX_CONCURRENT
from bloxserver.models.database import Database
from bloxserver.models.enums import ActorKind
from bloxserver.models.tables import AccountEmailRecord, AuditEventRecord, LlmCallRecord, UserApiKeyRecord
from bloxserver.services.llm_keys import delete_llm_key
from tests.llm.own_keys import MESSAGES, OWN_KEY, PLATFORM_KEY, Scene, keys_sent, scene
from tests.llm_server import Api, Reply, fails, never, says
from tests.statements import count_statements

NEW_KEY = "sk-proj-another-of-a-user-4712"


@pytest.fixture
async def installation(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async with scene(live_database, monkeypatch) as opened:
        yield opened


@pytest.fixture
async def without_platform(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async with scene(live_database, monkeypatch, has_platform=False) as opened:
        yield opened


async def invalidations(database: Database) -> list[AuditEventRecord]:
    async with database.sessions() as session:
        wanted = sa.select(AuditEventRecord).where(AuditEventRecord.action == "llm_key.invalidated")
        return list(await session.scalars(wanted))


async def emails(database: Database) -> list[tuple[UUID, str, dict[str, str]]]:
    async with database.sessions() as session:
        rows = await session.execute(
            sa.select(AccountEmailRecord.user_id, AccountEmailRecord.kind, AccountEmailRecord.data)
        )
        return [(row.user_id, row.kind, row.data) for row in rows]


class TestRoutes:
    async def test_own_key_is_used_first(self, installation: Scene) -> None:
        ada = await installation.user(openai=OWN_KEY)
        bob = await installation.user()
        assert (await installation.ask(ada)).text == "With your key."
        assert (await installation.ask(bob)).text == "With ours."
        assert (keys_sent(installation.provider), keys_sent(installation.platform)) == ([OWN_KEY], [PLATFORM_KEY])

    async def test_own_key_is_not_sent_to_another_server_with_the_same_api(self, installation: Scene) -> None:
        """The platform's server has the kind `openai`, and is the only one that offers the model."""
        ada = await installation.user(openai=OWN_KEY)
        assert (await installation.ask(ada, "llama")).text == "With ours."
        assert (keys_sent(installation.provider), keys_sent(installation.platform)) == ([], [PLATFORM_KEY])

    async def test_own_key_is_enough_without_providers_of_the_installation(self, without_platform: Scene) -> None:
        ada = await without_platform.user(openai=OWN_KEY)
        await without_platform.models.of(ada).load("gpt-1")
        assert (await without_platform.ask(ada)).text == "With your key."
        for model in ("llama", None):
            with pytest.raises(ModelError) as caught:
                await without_platform.ask(ada, model)
            assert caught.value.code == "llm_not_configured"

    async def test_plan_without_own_keys_does_not_use_them(self, installation: Scene) -> None:
        ada = await installation.user(openai=OWN_KEY)
        free = await installation.user("free")
        downgraded = type(ada)(ada.user_id, "free", free.plan)
        assert (await installation.ask(downgraded)).text == "With ours."
        assert (await installation.ask(ada)).text == "With your key."

    async def test_deleted_key_is_not_used_after_the_keys_are_read_again(self, installation: Scene) -> None:
        ada = await installation.user(openai=OWN_KEY)
        await installation.ask(ada)
        async with installation.database.transaction() as session:
            await delete_llm_key(session, ada.user_id, "openai")
        installation.forget()
        assert (await installation.ask(ada)).text == "With ours."

    async def test_call_of_a_user_without_keys_costs_at_most_one_statement(self, installation: Scene) -> None:
        bob, free = await installation.user(), await installation.user("free")
        await installation.ask(bob)  # reads the states of circuit breakers
        installation.forget()
        with count_statements(installation.database.reading_engine) as statements:
            for _ in range(5):
                await installation.models.of(bob).load("gpt-1")
                await installation.ask(bob)
        assert len([text for text in statements if "user_api_keys" in text]) == 1
        with count_statements(installation.database.reading_engine) as statements:
            await installation.ask(free)
        assert not [text for text in statements if "user_api_keys" in text]

    async def test_known_keys_are_used_while_the_database_cannot_be_read(
        self, installation: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ada, bob = await installation.user(openai=OWN_KEY), await installation.user()
        await installation.ask(ada)
        installation.forget()
        async with installation.database.engine.begin() as connection:
            await connection.execute(sa.text("ALTER TABLE user_api_keys RENAME TO moved"))
        try:
            assert (await installation.ask(ada)).text == "With your key."
            with pytest.raises(ModelError, match="cannot be read now") as caught:
                await installation.ask(bob)
            assert (caught.value.code, caught.value.retryable) == ("llm_unavailable", True)
        finally:
            async with installation.database.engine.begin() as connection:
                await connection.execute(sa.text("ALTER TABLE moved RENAME TO user_api_keys"))


class TestFailures:
    @pytest.mark.parametrize(
        "reply", [fails(401, f"Incorrect API key: {OWN_KEY}"), None], ids=["401", "the 400 of xAI"]
    )
    async def test_rejected_key_is_marked_once_and_the_platform_serves_the_call(
        self, installation: Scene, reply: Reply | None
    ) -> None:
        ada = await installation.user(openai=OWN_KEY)
        installation.own.reply = reply or _xai_rejection
        responses = await asyncio.gather(*(installation.ask(ada) for _ in range(5)))
        assert {response.text for response in responses} == {"With ours."}
        sent = len(installation.provider.requests)
        assert (await installation.ask(ada)).text == "With ours."
        assert len(installation.provider.requests) == sent
        row = await installation.row(ada)
        assert row.is_valid is False
        assert row.last_error is not None
        assert "rejected the API key (status 4" in row.last_error
        [event] = await invalidations(installation.database)
        assert await emails(installation.database) == [(ada.user_id, "model_key_invalid", {"provider": "openai"})]
        assert (event.user_id, event.resource_id) == (ada.user_id, "openai")
        assert (event.actor, event.actor_id) == (ActorKind.MODEL_PROVIDER, "openai")
        assert OWN_KEY not in repr((row.last_error, vars(event)))

    @pytest.mark.parametrize("fault", [fails(403), fails(404), fails(429), fails(402), fails(500)])
    async def test_key_remains_valid_after_other_failures_and_the_platform_serves_the_call(
        self, installation: Scene, fault: Reply
    ) -> None:
        ada = await installation.user(openai=OWN_KEY)
        installation.own.reply = fault
        assert (await installation.ask(ada)).text == "With ours."
        assert (await installation.row(ada)).is_valid is True
        assert await invalidations(installation.database) == []

    async def test_error_of_the_request_is_not_sent_to_the_platform(self, installation: Scene) -> None:
        ada = await installation.user(openai=OWN_KEY)
        installation.own.reply = fails(400, "no such tool")
        with pytest.raises(ModelError, match="no such tool"):
            await installation.ask(ada)
        assert installation.platform.requests == []

    async def test_failure_without_a_provider_of_the_installation_is_raised(self, without_platform: Scene) -> None:
        ada = await without_platform.user(openai=OWN_KEY)
        without_platform.own.reply = fails(401)
        with pytest.raises(ModelError, match="check your own key for openai") as caught:
            await without_platform.ask(ada)
        assert (caught.value.code, caught.value.retryable) == ("llm_unauthorized", False)

    async def test_key_that_is_replaced_during_the_call_is_not_marked(self, installation: Scene) -> None:
        ada = await installation.user(openai=OWN_KEY)

        async def reject(writer: StreamWriter) -> None:
            installation.own.reply = says("With your new key.")
            await installation.store(ada.user_id, "openai", NEW_KEY)
            rejection = fails(401)("openai")
            assert isinstance(rejection, bytes)
            writer.write(rejection)

        installation.own.reply = lambda api: reject
        assert (await installation.ask(ada)).text == "With ours."
        assert (await installation.row(ada)).is_valid is True
        assert (await installation.ask(ada)).text == "With your new key."
        assert keys_sent(installation.provider) == [OWN_KEY, NEW_KEY]

    async def test_replaced_key_is_used_again_after_a_rejection(self, installation: Scene) -> None:
        ada = await installation.user(openai=OWN_KEY)
        installation.own.reply = fails(401)
        await installation.ask(ada)
        await installation.store(ada.user_id, "openai", NEW_KEY)
        installation.own.reply = says("With your new key.")
        installation.forget()
        assert (await installation.ask(ada)).text == "With your new key."
        row = await installation.row(ada)
        assert (row.is_valid, row.last_error) == (True, None)

    async def test_failures_with_own_keys_do_not_open_the_breaker_of_the_platform(
        self, live_database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both keys are sent to the same provider."""
        async with scene(live_database, monkeypatch, has_platform=False, openai_api_key=PLATFORM_KEY) as opened:
            ada, bob = await opened.user(openai=OWN_KEY), await opened.user()
            opened.provider.script = lambda asked: (
                fails(500) if asked.headers["authorization"] == f"Bearer {OWN_KEY}" else says("With ours.")
            )
            for _ in range(FAILURES + 2):
                assert (await opened.ask(ada)).text == "With ours."
            assert (await opened.ask(bob)).text == "With ours."
            assert keys_sent(opened.provider).count(OWN_KEY) == FAILURES + 2

    @pytest.mark.parametrize("moved", ["from another user", "from another provider", "junk"])
    async def test_moved_ciphertext_is_not_used(self, installation: Scene, moved: str) -> None:
        ada, bob = await installation.user(openai=OWN_KEY), await installation.user(openai=NEW_KEY)
        await installation.store(bob.user_id, "together", NEW_KEY)
        source = {
            "from another user": (bob.user_id, "openai"),
            "from another provider": (bob.user_id, "together"),
        }
        target = bob if moved == "from another provider" else ada
        async with installation.database.transaction() as session:
            user_id, provider = source.get(moved, (None, ""))
            copied = await session.scalar(
                sa.select(UserApiKeyRecord.encrypted_key).where(
                    UserApiKeyRecord.user_id == user_id, UserApiKeyRecord.provider == provider
                )
            )
            await session.execute(
                sa.update(UserApiKeyRecord)
                .where(UserApiKeyRecord.user_id == target.user_id, UserApiKeyRecord.provider == "openai")
                .values(encrypted_key=copied or b"v1.\xff.x")
            )
        with capture_logs() as logs:
            assert (await installation.ask(target)).text == "With ours."
        assert installation.provider.requests == []
        assert [line["event"] for line in logs] == ["own key for language models unreadable"]


def _xai_rejection(api: Api) -> bytes:
    body = b'{"code": "invalid argument", "error": "Incorrect API key provided: sk***11."}'
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_own_key_is_neither_logged_nor_returned(installation: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ada = await installation.user(openai=OWN_KEY)
    with capture_logs() as logs:
        installation.own.reply = says(f"You sent {OWN_KEY.upper()}.")
        assert (await installation.ask(ada)).text == "You sent [your own key for openai]."
        installation.own.reply = fails(400, f"no: {OWN_KEY[::-1]}")
        with pytest.raises(ModelError) as caught:
            await installation.ask(ada)
        assert caught.value.message.endswith(": no: [your own key for openai]")
        installation.own.reply = fails(401, OWN_KEY)
        await installation.ask(ada)
    assert OWN_KEY not in repr((logs, caplog.text))
    async with installation.database.sessions() as session:
        for table in UserApiKeyRecord.metadata.sorted_tables:
            assert OWN_KEY not in repr((await session.execute(sa.select(table))).all()), table.name


async def test_time_of_the_last_use_is_written_at_most_once_a_minute(installation: Scene) -> None:
    ada = await installation.user(openai=OWN_KEY)
    assert (await installation.row(ada)).last_used_at is None
    await asyncio.gather(*(installation.ask(ada) for _ in range(5)))
    first = (await installation.row(ada)).last_used_at
    assert first is not None
    assert abs(first - now()) < timedelta(minutes=1)
    installation.forget()
    with count_statements(installation.database.engine) as statements:
        await installation.ask(ada)
    assert not [text for text in statements if text.startswith("UPDATE user_api_keys")]
    async with installation.database.transaction() as session:
        await session.execute(sa.update(UserApiKeyRecord).values(last_used_at=now() - timedelta(minutes=2)))
    installation.forget()
    await installation.ask(ada)
    last = (await installation.row(ada)).last_used_at
    assert last is not None
    assert last >= first


async def test_calls_of_a_user_with_own_keys_are_limited(installation: Scene) -> None:
    ada, bob = await installation.user(openai=OWN_KEY), await installation.user(openai=NEW_KEY)
    running = most = 0
    full, end = asyncio.Event(), asyncio.Event()

    async def respond(writer: StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == MAX_CONCURRENT:
            full.set()
        await end.wait()
        running -= 1
        response = says("With your key.")("openai")
        assert isinstance(response, bytes)
        writer.write(response)

    installation.own.reply = lambda api: respond
    async with asyncio.timeout(20):
        calls = [asyncio.create_task(installation.ask(ada)) for _ in range(MAX_CONCURRENT + 10)]
        await full.wait()
        installation.own.reply = says("Not delayed.")
        assert (await installation.ask(bob)).text == "Not delayed."
        end.set()
        assert {response.text for response in await asyncio.gather(*calls)} == {"With your key.", "Not delayed."}
    assert most == MAX_CONCURRENT


async def test_call_that_waits_too_long_is_not_sent_to_the_platform(
    installation: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_keys, "MAX_CONCURRENT", 1)
    monkeypatch.setattr(llm, "SHORT_RESPONSE_SECONDS", 0.1)
    ada = await installation.user(openai=OWN_KEY)
    installation.own.reply = never()
    first = asyncio.create_task(installation.ask(ada))
    async with asyncio.timeout(20):
        await installation.provider.was_asked.wait()
        with pytest.raises(ModelError, match="1 calls with your own keys are running already") as caught:
            await installation.models.of(ada).request(MESSAGES, model="gpt-1", max_tokens=10)
    assert (caught.value.code, caught.value.retryable) == ("llm_rate_limited", True)
    assert installation.platform.requests == []
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_limits_of_the_plan_apply_only_to_calls_with_keys_of_the_platform(
    live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(live_database, monkeypatch, rate_limits=True) as opened:
        ada, bob = await opened.user(openai=OWN_KEY), await opened.user()
        for user in (ada, bob):
            limited = dataclasses.replace(user, plan=dataclasses.replace(user.plan, llm_requests_per_minute=0))
            if user is ada:
                assert (await opened.ask(limited)).text == "With your key."
            else:
                with pytest.raises(ModelError, match="your plan allows 0 calls"):
                    await opened.ask(limited)


async def test_calls_with_own_keys_are_recorded_as_such(installation: Scene) -> None:
    ada = await installation.user(openai=OWN_KEY)
    await installation.ask(ada)
    installation.own.reply = fails(500)
    await installation.ask(ada)
    await installation.models.aclose()
    async with installation.database.sessions() as session:
        calls = (await session.scalars(sa.select(LlmCallRecord).order_by(LlmCallRecord.created_at))).all()
    assert [(call.provider, call.own_key, call.attempts) for call in calls] == [
        ("openai", True, 1),
        ("default", False, 2),
    ]


async def test_response_with_an_own_key_is_kept_only_for_its_user(
    live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(live_database, monkeypatch, llm_cache_shared=True) as opened:
        ada, bob = await opened.user(openai=OWN_KEY), await opened.user(openai=NEW_KEY)
        for user in (ada, ada, bob):
            await opened.models.of(user).request(MESSAGES, model="gpt-1", temperature=0)
        assert keys_sent(opened.provider) == [OWN_KEY, NEW_KEY]
