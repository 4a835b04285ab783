"""The loops that write due emails and send the outbox, with a real mail server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from bloxserver.account_emails.kinds import EmailKind
from bloxserver.account_emails.outbox import KEPT
from bloxserver.clients.mail import Mailer, MailServer
from bloxserver.clock import now
from bloxserver.engine.background.account_emails import DueEmails, EmailSender
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.tables import EmailCountRecord, UsageRecord
from bloxserver.queries.usage import period_at
from bloxserver.settings import Settings
from tests.account_emails.email_world import SENDER, EmailWorld, email_world
from tests.engine.retention_world import until
from tests.metric_increase import measure_increase
from tests.smtp_server import smtp_script

CANARY = "canary-7f31"
METRIC = "bloxserver_account_emails_total"
HOSTILE = "Ada\r\nBcc: eve@example.com\r\n\r\n<script>"
GREETING = (b"220 x\r\n", b"250 x\r\n", b"250 x\r\n", b"250 x\r\n", b"354 x\r\n")
"""The lines of a server until it has the content of a mail."""


@pytest.fixture
async def emails(live_database: Database, live_settings: Settings) -> AsyncIterator[EmailWorld]:
    async with email_world(live_database, live_settings) as world:
        yield world


@asynccontextmanager
async def running(loop: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(loop.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class TestSender:
    async def test_email_has_text_and_html(self, emails: EmailWorld) -> None:
        user_id = await emails.user(email="ada@example.com", name="Ada")
        await emails.write(user_id, "a")
        with measure_increase(METRIC, outcome="sent") as sent:
            assert await emails.sender().send_due() == 1
        [mail] = emails.smtp.received
        assert (mail.recipients, str(mail.message["To"]), str(mail.message["From"])) == (
            ["ada@example.com"],
            "ada@example.com",
            SENDER,
        )
        assert mail.message["Subject"] == "Your trial ends on 13 December 2026"
        assert [part.get_content_type() for part in mail.message.walk()] == [
            "multipart/alternative",
            "text/plain",
            "text/html",
        ]
        row = await emails.row()
        assert (row.due_at, row.error, sent.number) == (None, None, 1)
        assert row.sent_at is not None
        assert await emails.sender().send_due() == 0

    async def test_billing_page_is_linked_with_stripe_only(self, emails: EmailWorld) -> None:
        user_id = await emails.user()
        for key, stripe in (("a", None), ("b", "rk_test_x")):
            await emails.write(user_id, key)
            await emails.sender(stripe_secret_key=stripe, billing_cancel_url="https://x.example/plan").send_due()
        texts = [mail.message.get_body(("plain",)).get_content() for mail in emails.smtp.received]  # type: ignore[union-attr]
        assert ["https://x.example/plan" in text for text in texts] == [False, True]

    async def test_names_cannot_add_headers_or_markup(self, emails: EmailWorld) -> None:
        user_id = await emails.user(email="ada@example.com", name=HOSTILE)
        kind = EmailKind.DOWNGRADED_TO_FREE
        await emails.write(user_id, "a", kind=kind, running=[HOSTILE], plan=HOSTILE, previous_plan=HOSTILE)
        await emails.sender().send_due()
        [mail] = emails.smtp.received
        assert mail.recipients == ["ada@example.com"]
        assert {*mail.message.keys()} == {"From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"}
        html = mail.message.get_body(("html",))
        assert html is not None
        assert "<script>" not in html.get_content()
        assert "Ada  Bcc: eve@example.com" in mail.message["Subject"]

    async def test_attempts_of_an_email_have_one_message_id(self, emails: EmailWorld) -> None:
        user_id = await emails.user()
        await emails.write(user_id, "a", "b")
        sender = emails.sender()
        await sender.send_due()
        await emails.change(due_at=now(), attempted_at=None, sent_at=None)
        await sender.send_due()
        ids = [str(mail.message["Message-ID"]) for mail in emails.smtp.received]
        assert (len(ids), len({*ids})) == (4, 2)

    async def test_temporary_refusal_is_retried(self, emails: EmailWorld) -> None:
        await emails.write(await emails.user(), "a")
        emails.smtp.refusals["DATA"] = "451 later"
        sender = emails.sender()
        with measure_increase(METRIC, outcome="retried") as retried:
            await sender.send_due()
        row = await emails.row()
        assert (row.error, row.attempted_at, retried.number) == ("mail_refused", None, 1)
        assert row.due_at is not None
        assert row.due_at > now() + timedelta(seconds=90)
        del emails.smtp.refusals["DATA"]
        await emails.make_due()
        await sender.send_due()
        assert (len(emails.smtp.received), (await emails.row()).error) == (1, None)

    async def test_permanent_refusal_is_not_retried(self, emails: EmailWorld) -> None:
        await emails.write(await emails.user(email="ada@example.com"), "a")
        emails.smtp.refusals["ada@example.com"] = "550 no"
        with measure_increase(METRIC, outcome="failed") as failed:
            await emails.sender().send_due()
        row = await emails.row()
        assert (row.due_at, row.sent_at, row.error, failed.number) == (None, None, "recipients_refused", 1)

    async def test_closed_port_is_retried(self, emails: EmailWorld) -> None:
        await emails.write(await emails.user(), "a")
        await emails.sender(port=1).send_due()
        row = await emails.row()
        assert (row.error, row.attempted_at) == ("connection_failed", None)
        assert row.due_at is not None

    async def test_wrong_password_is_retried(self, emails: EmailWorld) -> None:
        """It is an error of the installation, not of the email."""
        await emails.write(await emails.user(), "a")
        async with smtp_script(*GREETING[:1], b"250-x\r\n250 AUTH PLAIN\r\n", b"535 no\r\n") as port:
            server = MailServer("127.0.0.1", port, "none", "ada", "wrong")
            await EmailSender(emails.database, Mailer(server, SENDER), emails.settings).send_due()
        row = await emails.row()
        assert (row.error, row.due_at is None) == ("authentication_failed", False)

    async def test_lost_connection_before_the_content_is_retried(self, emails: EmailWorld) -> None:
        await emails.write(await emails.user(), "a")
        async with smtp_script(*GREETING[:3]) as port:
            await emails.sender(port).send_due()
        row = await emails.row()
        assert (row.error, row.due_at is None) == ("connection_failed", False)

    async def test_lost_answer_is_not_repeated(self, emails: EmailWorld) -> None:
        await emails.write(await emails.user(), "a")
        with measure_increase(METRIC, outcome="unknown") as unknown:
            async with smtp_script(*GREETING) as port:
                await emails.sender(port).send_due()
        row = await emails.row()
        assert (row.due_at, row.sent_at, row.error, unknown.number) == (None, None, "outcome unknown", 1)

    @pytest.mark.parametrize("address", ["", "user_1@unknown", "dev@localhost", "no address"])
    async def test_user_without_an_address_gets_none(self, emails: EmailWorld, address: str) -> None:
        await emails.write(await emails.user(email=address), "a")
        await emails.sender().send_due()
        row = await emails.row()
        assert (row.due_at, row.sent_at, emails.smtp.received) == (None, None, [])
        assert "address" in (row.error or "")

    async def test_kind_of_a_newer_version_fails(self, emails: EmailWorld) -> None:
        await emails.write(await emails.user(), "a")
        await emails.change(kind="newer")
        await emails.sender().send_due()
        assert (await emails.row()).error == "the kind is unknown"

    async def test_template_of_the_operator_is_used(self, emails: EmailWorld, tmp_path: Path) -> None:
        (tmp_path / "trial_ending.txt").write_text("Subject: Soon\n\nHello {{ name }}")
        await emails.write(await emails.user(), "a")
        await emails.sender(email_templates_dir=str(tmp_path)).send_due()
        assert [str(mail.message["Subject"]) for mail in emails.smtp.received] == ["Soon"]

    async def test_email_does_not_count_for_the_plan(self, emails: EmailWorld) -> None:
        await emails.write(await emails.user(), "a")
        await emails.sender().send_due()
        async with emails.database.sessions() as session:
            assert await session.scalar(sa.select(sa.func.count()).select_from(EmailCountRecord)) == 0

    async def test_concurrent_senders_send_each_email_once(self, emails: EmailWorld) -> None:
        user_id = await emails.user()
        keys = [str(number) for number in range(23)]
        await emails.write(user_id, *keys)
        await asyncio.gather(*(emails.sender().send_due() for _ in range(4)))
        assert len({str(mail.message["Message-ID"]) for mail in emails.smtp.received}) == len(keys)
        assert len(emails.smtp.received) == len(keys)

    async def test_stop_lets_an_attempt_end(self, emails: EmailWorld) -> None:
        await emails.write(await emails.user(), "a")
        arrived, release = asyncio.Event(), asyncio.Event()
        accept = emails.smtp.handle_DATA

        async def wait(*arguments: Any) -> str:
            arrived.set()
            await release.wait()
            return await accept(*arguments)

        emails.smtp.handle_DATA = wait  # type: ignore[method-assign, assignment]
        async with running(emails.sender()) as task:
            await arrived.wait()
            task.cancel()
            release.set()
            with suppress(asyncio.CancelledError):
                await task
        assert ((await emails.row()).sent_at is None, len(emails.smtp.received)) == (False, 1)

    async def test_neither_addresses_nor_contents_are_logged(self, emails: EmailWorld) -> None:
        user_id = await emails.user(email=f"{CANARY}@example.com", name=CANARY)
        sender = emails.sender()
        with capture_logs() as lines:
            for key, refusal in (("a", None), ("b", f"550 {CANARY}?"), ("c", f"451 {CANARY}?")):
                emails.smtp.refusals = {} if refusal is None else {f"{CANARY}@example.com": refusal}
                await emails.write(user_id, key, plan=CANARY)
                await sender.send_due()
        assert [line["event"] for line in lines] == ["email to a user"] * 3
        assert CANARY not in str(lines)
        assert [row.error for row in await emails.rows()] == [None, "recipients_refused", "recipients_refused"]


class TestDueEmails:
    async def test_due_email_is_written_once(self, emails: EmailWorld) -> None:
        user_id = await emails.user(name="Ada")
        await self.use(emails, user_id, 800)
        loops = [DueEmails(emails.database) for _ in range(4)]
        await asyncio.gather(*(loop.write_due() for loop in loops))
        assert (await emails.row()).kind == EmailKind.USAGE_WARNING
        assert await loops[0].write_due() == 0
        await self.use(emails, user_id, 200, slot=1)
        assert await loops[0].write_due() == 1
        assert [row.kind for row in await emails.rows()] == [EmailKind.USAGE_WARNING, EmailKind.USAGE_LIMIT]

    async def test_old_rows_are_deleted(self, emails: EmailWorld) -> None:
        await emails.write(await emails.user(), "a")
        await emails.change(created_at=now() - KEPT - timedelta(days=1))

        async def is_deleted() -> bool:
            return not await emails.rows()

        async with running(DueEmails(emails.database, interval_seconds=0.02)):
            await until(is_deleted, interval_seconds=0.02)

    async def use(self, emails: EmailWorld, user_id: Any, runs: int, slot: int = 0) -> None:
        period = period_at(now(), None, None)
        values = {"user_id": user_id, "period_start": period.start, "period_end": period.end}
        async with emails.database.transaction() as session:
            await session.execute(sa.insert(UsageRecord).values(**values, slot=slot, workflow_runs=runs))


@pytest.mark.parametrize("has_server", [True, False])
async def test_worker_writes_and_sends_emails(emails: EmailWorld, live_settings: Settings, has_server: bool) -> None:
    user_id = await emails.user()
    await TestDueEmails().use(emails, user_id, 800)
    server = {"smtp_host": "127.0.0.1", "smtp_port": emails.smtp.port, "smtp_security": "none", "smtp_from": SENDER}
    engine = Engine(live_settings.model_copy(update=server if has_server else {}), emails.database, run_worker=True)
    await engine.start()

    async def is_done() -> bool:
        rows = await emails.rows()
        return bool(rows) and (not has_server or rows[0].sent_at is not None)

    await until(is_done, interval_seconds=0.05)
    await engine.stop()
    assert len(emails.smtp.received) == has_server
