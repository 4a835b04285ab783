"""Emails of flows and failure notifications count towards the limit of their owner."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from bloxserver.clients.mail import Mailer, MailError, MailServer
from bloxserver.clients.shares import UNLIMITED
from bloxserver.clock import now
from bloxserver.engine.emails import EmailCounter
from bloxserver.models.database import Database
from bloxserver.models.tables import EmailCountRecord
from bloxserver.plans import FREE
from bloxserver.settings import Settings
from tests.clients.loopback import running_server
from tests.clients.mailing import mail
from tests.engine.notification_installation import Installation, assert_to_be_tried_again, organism
from tests.factories import create_user
from tests.smtp_server import running_smtp_server


@pytest.fixture
async def installation(live_settings: Settings, live_database: Database) -> AsyncIterator[Installation]:
    async with running_server() as http, running_smtp_server() as smtp:
        installation = Installation(live_settings, live_database, http, smtp)
        async with live_database.sessions() as session:
            installation.user = await create_user(session)
        yield installation


async def counted(installation: Installation) -> int | None:
    async with installation.database.sessions() as session:
        return await session.scalar(sa.select(EmailCountRecord.emails))


async def use_up(installation: Installation, emails: int) -> None:
    async with installation.database.transaction() as session:
        session.add(EmailCountRecord(user_id=installation.user.id, day=now().date(), emails=emails))


async def test_email_over_the_limit_is_not_sent(installation: Installation) -> None:
    await use_up(installation, FREE.emails_per_day - 1)
    server = MailServer("127.0.0.1", installation.smtp.port, "none")
    counter = EmailCounter(installation.database, installation.user.id)
    mailer = Mailer(server, "me@example.org").limited_to(UNLIMITED, counter)
    assert await mailer.send(mail()) == ["ada@example.com"]
    with pytest.raises(MailError, match=r"The limit of 100 emails per day is reached \(in use: 100\)") as caught:
        await mailer.send(mail())
    assert (caught.value.code, caught.value.retryable) == ("emails_per_day_limit_reached", True)
    assert (len(installation.smtp.received), await counted(installation)) == (1, FREE.emails_per_day)


async def test_failure_notification_is_counted(installation: Installation) -> None:
    await installation.fail(organism(email="ops@example.com"))
    assert await installation.notifier().deliver_due() == 1
    assert (len(installation.smtp.received), await counted(installation)) == (1, 1)


async def test_failure_notification_over_the_limit_is_sent_later(installation: Installation) -> None:
    await use_up(installation, FREE.emails_per_day)
    await installation.fail(organism(email="ops@example.com"))
    before = now()
    await installation.notifier().deliver_due()
    reason = "the mail was not sent (emails_per_day_limit_reached)"
    assert_to_be_tried_again(await installation.notice(), 1, reason, before)
    assert installation.smtp.received == []
