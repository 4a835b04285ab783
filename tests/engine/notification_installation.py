"""An installation with failed executions, for tests of failure notifications."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any

import sqlalchemy as sa
from pydantic import SecretStr

from bloxserver.clients.http import GuardedClient
from bloxserver.clients.mail import Mailer, MailServer
from bloxserver.clock import now
from bloxserver.encryption import get_cipher
from bloxserver.engine.background.notifications import NotificationSender
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, FailureNotificationRecord, UserRecord
from bloxserver.organism.load import parse_organism
from bloxserver.services.notifications import enqueue_failure_notification
from bloxserver.services.secrets import set_secret
from bloxserver.settings import Settings
from tests.clients.loopback import LoopbackServer, answer
from tests.factories import create_execution, create_flow
from tests.smtp_server import SmtpServer

LOOPBACK = [ip_network("127.0.0.1/32")]


def organism(**on_failure: str) -> str:
    """A definition with the recipients of failure notifications."""
    listener = {"name": "a", "description": "A", "handler": "echo"}
    execution = {"execution": {"on_failure": on_failure}} if on_failure else {}
    return json.dumps({"organism": {"name": "x"}, "listeners": [listener], **execution})


class Installation:
    """A database with a user whose flow has failed, and the servers of the recipients."""

    user: UserRecord

    def __init__(self, settings: Settings, database: Database, http: LoopbackServer, smtp: SmtpServer) -> None:
        self.settings = settings.model_copy(update={"api_key_encryption_key": SecretStr("k" * 32)})
        self.database = database
        self.http = http
        self.smtp = smtp
        self.client = GuardedClient(allow=LOOPBACK)
        self.http.answers["/hook"] = answer(b"thanks")
        self.url = self.http.url("/hook")

    def notifier(self, mailer: Mailer | None = None) -> NotificationSender:
        server = MailServer("127.0.0.1", self.smtp.port, "none")
        return NotificationSender(
            self.database, self.client, mailer or Mailer(server, "flows@example.com", LOOPBACK), self.settings
        )

    async def fail(self, definition: str, **values: Any) -> ExecutionRecord:
        """An execution of this definition that has failed, as a worker leaves it."""
        recipients = (await parse_organism(definition, self.user.id)).on_failure
        assert recipients is not None
        defaults = {"status": ExecutionStatus.ERROR, "error_message": "a: it broke", "completed_at": now()}
        async with self.database.sessions() as session:
            flow = await create_flow(session, self.user, name="Orders", organism_yaml=definition)
            execution = await create_execution(session, flow, **defaults | values)
            await enqueue_failure_notification(session, execution.id, recipients)
            await session.commit()
        return execution

    async def set_secret(self, name: str, value: str) -> None:
        async with self.database.transaction() as session:
            await set_secret(session, get_cipher(self.settings), self.user.id, name, value)

    async def notices(self) -> list[FailureNotificationRecord]:
        async with self.database.sessions() as session:
            rows = await session.scalars(sa.select(FailureNotificationRecord).order_by(FailureNotificationRecord.id))
            return list(rows)

    async def notice(self) -> FailureNotificationRecord:
        [notice] = await self.notices()
        return notice

    async def change(self, **values: Any) -> None:
        """Set columns of all notifications."""
        async with self.database.transaction() as session:
            await session.execute(sa.update(FailureNotificationRecord).values(**values))


async def rename(installation: Installation, table: str, to: str) -> None:
    async with installation.database.transaction() as session:
        await session.execute(sa.text(f"ALTER TABLE {table} RENAME TO {to}"))


def assert_given_up(notice: FailureNotificationRecord, attempts: int, reason: str) -> None:
    assert (notice.attempts, notice.due_at, notice.delivered_at) == (attempts, None, None)
    assert notice.error_message == reason


def assert_to_be_tried_again(notice: FailureNotificationRecord, attempts: int, reason: str, since: datetime) -> None:
    assert (notice.attempts, notice.delivered_at, notice.error_message) == (attempts, None, reason)
    pause = timedelta(seconds=30 * 4**attempts)
    assert notice.due_at is not None
    assert since + pause * 0.8 <= notice.due_at <= now() + pause * 1.2
