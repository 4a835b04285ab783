"""Delivery of failure notifications: once, with a limited number of retries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from standardwebhooks import Webhook
from structlog.testing import capture_logs
from structlog.typing import EventDict

from bloxserver.clients.mail import Mailer, MailServer
from bloxserver.clock import now
from bloxserver.engine.background.notification_rows import claim_notification, read_due_notifications
from bloxserver.engine.background.notifications import ATTEMPT, BATCH, MAX_ATTEMPTS, backoff_after
from bloxserver.models.database import Database
from bloxserver.models.enums import NotificationChannel
from bloxserver.models.tables import FlowRecord
from bloxserver.settings import Settings
from tests.clients.loopback import answer, running_server
from tests.engine.notification_installation import (
    Installation,
    assert_given_up,
    assert_to_be_tried_again,
    organism,
    rename,
)
from tests.factories import create_user
from tests.smtp_server import running_smtp_server

CANARY = "canary7f3a9e51"
SIGNING = "whsec_" + "c2lnbmluZy1rZXktb2YtdGhpcy10ZXN0"
ADDRESS = "ops@example.com"


@pytest.fixture
async def installation(live_settings: Settings, live_database: Database) -> AsyncIterator[Installation]:
    async with running_server() as http, running_smtp_server() as smtp:
        installation = Installation(live_settings, live_database, http, smtp)
        async with live_database.sessions() as session:
            installation.user = await create_user(session)
        yield installation


class TestUrl:
    async def test_request_describes_the_failure(self, installation: Installation) -> None:
        execution = await installation.fail(organism(url=installation.url), flow_version=None, depth=2)
        before = now()
        assert await installation.notifier().deliver_due() == 1
        [request] = installation.http.received
        assert (request.method, request.path) == ("POST", "/hook")
        assert request.headers["content-type"] == "application/json"
        body = json.loads(request.body)
        assert body["type"] == "execution.failed"
        assert body["data"]["executionId"] == str(execution.id)
        assert (body["data"]["flowName"], body["data"]["errorMessage"]) == ("Orders", "a: it broke")
        notice = await installation.notice()
        assert request.headers["webhook-id"] == str(notice.id)
        assert int(before.timestamp()) <= int(request.headers["webhook-timestamp"]) <= now().timestamp()
        assert "webhook-signature" not in request.headers
        # ends a flow whose notifications call its own webhook
        assert request.headers["bloxserver-depth"] == "3"
        assert (notice.attempts, notice.due_at, notice.error_message) == (1, None, None)
        assert notice.delivered_at is not None
        assert before <= notice.delivered_at <= now()

    async def test_recipient_can_verify_the_signature(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.url, secret=SIGNING))
        await installation.notifier().deliver_due()
        [request] = installation.http.received
        Webhook(SIGNING).verify(request.body, dict(request.headers))

    async def test_url_and_secret_may_be_secrets(self, installation: Installation) -> None:
        await installation.set_secret("HOOK", "hook")
        await installation.set_secret("SIGNING", SIGNING)
        url = installation.http.url("/{{ secrets.HOOK }}")
        await installation.fail(organism(url=url, secret="{{ secrets.SIGNING }}"))
        await installation.notifier().deliver_due()
        [request] = installation.http.received
        assert request.path == "/hook"
        Webhook(SIGNING).verify(request.body, dict(request.headers))

    async def test_a_delivered_notice_is_not_sent_again(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.url))
        notifier = installation.notifier()
        assert [await notifier.deliver_due(), await notifier.deliver_due()] == [1, 0]
        assert len(installation.http.received) == 1

    @pytest.mark.parametrize(
        ("status", "said"),
        [("500 Oops", "500"), ("404 Not Found", "404"), ("302 Found\r\nLocation: /other", "302"), ("429 Slow", "429")],
    )
    async def test_error_response_is_retried(self, installation: Installation, status: str, said: str) -> None:
        await installation.fail(organism(url=installation.url))
        installation.http.answers["/hook"] = answer(status=status)
        before = now()
        assert await installation.notifier().deliver_due() == 1
        assert_to_be_tried_again(await installation.notice(), 1, f"the server answered {said}", before)

        installation.http.answers["/hook"] = answer(status="204 No Content")
        await installation.change(due_at=now())
        assert await installation.notifier().deliver_due() == 1
        first, second = installation.http.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body
        notice = await installation.notice()
        assert (notice.attempts, notice.due_at, notice.error_message) == (2, None, None)
        assert notice.delivered_at is not None

    async def test_unreachable_recipient_is_retried(self, installation: Installation) -> None:
        async with running_server() as gone:
            url = gone.url("/")
        await installation.fail(organism(url=url))
        before = now()
        await installation.notifier().deliver_due()
        assert_to_be_tried_again(await installation.notice(), 1, "the request failed (connection_failed)", before)

    async def test_notification_fails_after_six_attempts(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.url))
        installation.http.answers["/hook"] = answer(status="503 Busy")
        notifier = installation.notifier()
        for attempt in range(1, MAX_ATTEMPTS):
            before = now()
            await notifier.deliver_due()
            assert_to_be_tried_again(await installation.notice(), attempt, "the server answered 503", before)
            await installation.change(due_at=now())
        await notifier.deliver_due()
        assert_given_up(await installation.notice(), MAX_ATTEMPTS, "the server answered 503")
        assert await notifier.deliver_due() == 0
        assert len(installation.http.received) == MAX_ATTEMPTS == 6

    async def test_response_410_is_not_retried(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.url))
        installation.http.answers["/hook"] = answer(status="410 Gone")
        await installation.notifier().deliver_due()
        assert_given_up(await installation.notice(), 1, "the server answered 410")

    async def test_private_address_receives_no_request(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.http.url("/hook", "127.0.0.2")))
        await installation.notifier().deliver_due()
        assert_given_up(await installation.notice(), 1, "the request failed (address_refused)")
        assert installation.http.connections == 0

    async def test_invalid_signing_secret_is_not_retried(self, installation: Installation) -> None:
        await installation.set_secret("SIGNING", CANARY)
        await installation.fail(organism(url=installation.url, secret="{{ secrets.SIGNING }}"))
        await installation.notifier().deliver_due()
        assert_given_up(await installation.notice(), 1, "execution.on_failure.secret is no valid signing secret")
        assert installation.http.received == []


class TestMail:
    async def test_mail_describes_the_failure(self, installation: Installation) -> None:
        execution = await installation.fail(organism(email=ADDRESS))
        assert await installation.notifier().deliver_due() == 1
        [mail] = installation.smtp.received
        assert (mail.sender, mail.recipients) == ("flows@example.com", [ADDRESS])
        assert mail.message["Subject"] == 'Flow "Orders" failed'
        text = mail.message.get_content()
        assert "a: it broke" in text
        assert str(execution.id) in text
        notice = await installation.notice()
        assert (notice.channel, notice.due_at, notice.error_message) == (NotificationChannel.EMAIL, None, None)
        assert notice.delivered_at is not None

    async def test_the_address_may_be_a_secret(self, installation: Installation) -> None:
        await installation.set_secret("BOSS", "boss@example.com")
        await installation.fail(organism(email="{{ secrets.BOSS }}"))
        await installation.notifier().deliver_due()
        assert [mail.recipients for mail in installation.smtp.received] == [["boss@example.com"]]

    async def test_busy_mail_server_is_retried(self, installation: Installation) -> None:
        await installation.fail(organism(email=ADDRESS))
        installation.smtp.refusals["DATA"] = "451 Try again later"
        before = now()
        await installation.notifier().deliver_due()
        assert_to_be_tried_again(await installation.notice(), 1, "the mail was not sent (mail_refused)", before)

    async def test_rejected_address_is_not_retried(self, installation: Installation) -> None:
        await installation.fail(organism(email=ADDRESS))
        installation.smtp.refusals[ADDRESS] = f"550 No {ADDRESS} here"
        await installation.notifier().deliver_due()
        assert_given_up(await installation.notice(), 1, "the mail was not sent (recipients_refused)")

    async def test_invalid_address_is_not_retried(self, installation: Installation) -> None:
        await installation.set_secret("BOSS", f"{CANARY}\r\nBcc: all@example.com")
        await installation.fail(organism(email="{{ secrets.BOSS }}"))
        await installation.notifier().deliver_due()
        reason = "execution.on_failure.email is no address that mail can be sent to"
        assert_given_up(await installation.notice(), 1, reason)

    @pytest.mark.parametrize(
        "mailer", [Mailer(None, "flows@example.com"), Mailer(MailServer("127.0.0.1", 25, "none"), None)]
    )
    async def test_missing_mail_settings_are_named(self, installation: Installation, mailer: Mailer) -> None:
        await installation.fail(organism(email=ADDRESS))
        await installation.notifier(mailer).deliver_due()
        reason = "this server sends no mail: SMTP_HOST and SMTP_FROM must be set"
        assert_given_up(await installation.notice(), 1, reason)


class TestDelivery:
    async def test_recipients_do_not_delay_each_other(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.url, email=ADDRESS))
        installation.http.answers["/hook"] = answer(status="500 Oops")
        assert await installation.notifier().deliver_due() == 2
        delivered = {row.channel: row.delivered_at is not None for row in await installation.notices()}
        assert delivered == {NotificationChannel.URL: False, NotificationChannel.EMAIL: True}
        assert len(installation.smtp.received) == 1

    async def test_concurrent_senders_send_once(self, installation: Installation) -> None:
        """Several polls, with more notifications than one poll sends."""
        for _ in range(3 * BATCH + 1):
            await installation.fail(organism(url=installation.url))
        notifiers = [installation.notifier(), installation.notifier()]
        while await asyncio.gather(*(notifier.deliver_due() for notifier in notifiers)) != [0, 0]:
            pass
        ids = [request.headers["webhook-id"] for request in installation.http.received]
        assert len(ids) == len(set(ids)) == 3 * BATCH + 1
        assert all(notice.attempts == 1 and notice.delivered_at for notice in await installation.notices())

    async def test_no_transaction_is_open_during_a_request(self, installation: Installation) -> None:
        held: list[int] = []

        async def look(writer: asyncio.StreamWriter) -> None:
            # A write transaction: SQLite allows only one at a time.
            async with asyncio.timeout(5), installation.database.transaction() as session:
                await session.execute(sa.update(FlowRecord).values(description="changed"))
            held.append(1)
            writer.write(answer())

        await installation.fail(organism(url=installation.url))
        installation.http.answers["/hook"] = look
        await installation.notifier().deliver_due()
        assert held == [1]
        assert (await installation.notice()).delivered_at is not None

    async def test_notification_of_a_dead_sender_is_sent_by_another(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.url))
        async with installation.database.transaction() as session:
            [due] = await read_due_notifications(session, now(), 10)
            assert await claim_notification(session, due, now() + ATTEMPT)
        assert await installation.notifier().deliver_due() == 0
        async with installation.database.transaction() as session:
            await claim_notification(session, (await read_due_notifications(session, now() + ATTEMPT, 10))[0], now())
        assert await installation.notifier().deliver_due() == 1
        assert len(installation.http.received) == 1

    async def test_notification_that_crashes_its_senders_fails(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.url))
        await installation.change(attempts=MAX_ATTEMPTS)
        await installation.notifier().deliver_due()
        reason = "the server stopped during the last attempt"
        assert_given_up(await installation.notice(), MAX_ATTEMPTS + 1, reason)
        assert installation.http.received == []

    async def test_flow_deleted_during_a_delivery_causes_no_error(self, installation: Installation) -> None:
        async def delete(writer: asyncio.StreamWriter) -> None:
            async with installation.database.transaction() as session:
                await session.execute(sa.delete(FlowRecord))
            writer.write(answer())

        await installation.fail(organism(url=installation.url))
        installation.http.answers["/hook"] = delete
        assert await installation.notifier().deliver_due() == 1
        assert await installation.notices() == []

    async def test_invalid_definition_is_not_retried(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.url))
        await self.edit(installation, "listeners: [")
        await installation.notifier().deliver_due()
        assert_given_up(await installation.notice(), 1, "the definition is no longer valid")

    @pytest.mark.parametrize(
        "definition", [organism(), organism(email=ADDRESS)], ids=["no recipient", "another recipient"]
    )
    async def test_recipient_removed_from_the_definition_is_not_retried(
        self, installation: Installation, definition: str
    ) -> None:
        await installation.fail(organism(url=installation.url))
        await self.edit(installation, definition)
        await installation.notifier().deliver_due()
        assert_given_up(await installation.notice(), 1, "the definition no longer names this recipient")

    async def edit(self, installation: Installation, definition: str) -> None:
        async with installation.database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(organism_yaml=definition))

    async def test_missing_secret_is_retried(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.http.url("/{{ secrets.HOOK }}")))
        before = now()
        await installation.notifier().deliver_due()
        assert_to_be_tried_again(await installation.notice(), 1, "The secret HOOK does not exist", before)
        await installation.set_secret("HOOK", "hook")
        await installation.change(due_at=now())
        await installation.notifier().deliver_due()
        assert len(installation.http.received) == 1

    async def test_unexpected_error_is_retried(self, installation: Installation) -> None:
        await installation.fail(organism(url=installation.http.url("/{{ secrets.HOOK }}")))
        await rename(installation, "secrets", "hidden_secrets")
        before = now()
        with capture_logs() as logs:
            await installation.notifier().deliver_due()
        assert_to_be_tried_again(await installation.notice(), 1, "internal error", before)
        [unexpected] = [line for line in logs if line["event"] == "failure notification failed unexpectedly"]
        assert unexpected["error"] in ("OperationalError", "ProgrammingError")

    @pytest.mark.parametrize(
        "recipients",
        [
            {"url": "http://{{ secrets.CANARY }}.invalid/{{ secrets.CANARY }}"},
            {"url": "{{ secrets.CANARY }}"},
            {"url": "http://127.0.0.1:1/{{ secrets.CANARY }}?a={{ secrets.CANARY }}"},
            {"url": "http://127.0.0.2/", "secret": "{{ secrets.CANARY }}"},
            {"email": "{{ secrets.CANARY }}"},
            {"email": "{{ secrets.CANARY }}@example.com"},
        ],
        ids=str,
    )
    async def test_errors_and_logs_contain_no_secret(
        self, installation: Installation, recipients: dict[str, str]
    ) -> None:
        await installation.set_secret("CANARY", CANARY)
        installation.smtp.refusals[f"{CANARY}@example.com"] = f"550 Who is {CANARY}?"
        await installation.fail(organism(**recipients))
        with capture_logs() as logs:
            await installation.notifier().deliver_due()
        notice = await installation.notice()
        assert notice.delivered_at is None
        assert notice.error_message
        assert CANARY not in notice.error_message
        assert logs
        assert CANARY not in str(logs)


class TestLoop:
    async def test_loop_sends_new_notifications_until_cancelled(self, installation: Installation) -> None:
        notifier = installation.notifier()
        unlisten = installation.database.on_commit(lambda work: notifier.wake())
        loop = asyncio.create_task(notifier.run())
        for count in (1, 2):
            arrived = asyncio.Event()

            async def note(writer: asyncio.StreamWriter, arrived: asyncio.Event = arrived) -> None:
                writer.write(answer())
                arrived.set()

            installation.http.answers["/hook"] = note
            await installation.fail(organism(url=installation.url))
            async with asyncio.timeout(10):
                await arrived.wait()
            assert len(installation.http.received) == count
        unlisten()
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop

    async def test_loop_continues_after_a_failed_poll(self, installation: Installation) -> None:
        arrived, failed = asyncio.Event(), asyncio.Event()

        async def note(writer: asyncio.StreamWriter) -> None:
            writer.write(answer())
            arrived.set()

        def watch(logger: Any, method: str, line: EventDict) -> EventDict:
            if line["event"] == "sending failure notifications failed":
                failed.set()
            return line

        installation.http.answers["/hook"] = note
        await installation.fail(organism(url=installation.url))
        await rename(installation, "failure_notifications", "hidden_notices")
        with capture_logs(processors=[watch]):
            loop = asyncio.create_task(installation.notifier().run())
            async with asyncio.timeout(10):
                await failed.wait()
                await rename(installation, "hidden_notices", "failure_notifications")
                await arrived.wait()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


def test_backoff_grows_to_hours() -> None:
    pauses = [backoff_after(attempts) for attempts in range(1, MAX_ATTEMPTS)]
    for pause, expected in zip(pauses, (120, 480, 1_920, 7_680, 30_720), strict=True):
        assert 0.8 * expected <= pause.total_seconds() <= 1.2 * expected
    assert len({backoff_after(1) for _ in range(20)}) > 1
