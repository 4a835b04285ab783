"""A mail server, users, and the outbox of emails to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from bloxserver.account_emails.kinds import SAMPLES, Email, EmailKind
from bloxserver.account_emails.outbox import enqueue
from bloxserver.clients.mail import Mailer, MailServer
from bloxserver.clock import now
from bloxserver.engine.background.account_emails import EmailSender
from bloxserver.models.database import Database
from bloxserver.models.tables import AccountEmailRecord
from bloxserver.settings import Settings
from tests.factories import create_user
from tests.smtp_server import SmtpServer, running_smtp_server

SENDER = "BloxServer <accounts@blox.example>"
KIND = EmailKind.TRIAL_ENDING


@dataclass
class EmailWorld:
    database: Database
    settings: Settings
    smtp: SmtpServer

    def sender(self, port: int | None = None, **settings: Any) -> EmailSender:
        """A sender, as each worker has one."""
        mailer = Mailer(MailServer("127.0.0.1", port or self.smtp.port, "none"), SENDER)
        return EmailSender(self.database, mailer, self.settings.model_copy(update=settings), interval_seconds=0.02)

    async def user(self, **values: Any) -> UUID:
        async with self.database.sessions() as session:
            return (await create_user(session, **values)).id

    async def write(self, user_id: UUID, *keys: str, kind: EmailKind = KIND, **data: Any) -> None:
        emails = [Email(kind, key, SAMPLES[kind][0] | data) for key in keys]
        async with self.database.transaction() as session:
            await enqueue(session, [(user_id, email) for email in emails])

    async def rows(self) -> Sequence[AccountEmailRecord]:
        async with self.database.sessions() as session:
            return (await session.scalars(sa.select(AccountEmailRecord).order_by(AccountEmailRecord.id))).all()

    async def row(self) -> AccountEmailRecord:
        [row] = await self.rows()
        return row

    async def change(self, **values: Any) -> None:
        async with self.database.transaction() as session:
            await session.execute(sa.update(AccountEmailRecord).values(values))

    async def make_due(self) -> None:
        """Let the time of the next attempt, or the end of a claim, pass."""
        record = AccountEmailRecord
        async with self.database.transaction() as session:
            await session.execute(sa.update(record).where(record.due_at.is_not(None)).values(due_at=now()))


@asynccontextmanager
async def email_world(database: Database, settings: Settings) -> AsyncIterator[EmailWorld]:
    async with running_smtp_server() as smtp:
        yield EmailWorld(database, settings, smtp)
