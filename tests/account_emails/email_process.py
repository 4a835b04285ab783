"""A process that claims emails and stops there, or one that sends them. Tests kill both.

Usage: `python -m tests.account_emails.email_process claim|send URL_OF_THE_DATABASE PORT_OF_THE_MAIL_SERVER`.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from bloxserver.account_emails import outbox
from bloxserver.clients.mail import Mailer, MailServer
from bloxserver.clock import now
from bloxserver.engine.background.account_emails import EmailSender
from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.account_emails.email_world import SENDER

INTERVAL_SECONDS = 0.05


async def main(mode: str, database_url: str, port: int) -> None:
    settings = Settings(database_url=database_url)
    database = Database(settings)
    if mode == "claim":
        async with database.transaction() as session:
            claimed = await outbox.claim_emails(session, now())
        print(len(claimed), flush=True)  # noqa: T201
        await asyncio.Event().wait()
    outbox.CLAIM = timedelta(seconds=2)  # instead of waiting for five minutes
    mailer = Mailer(MailServer("127.0.0.1", port, "none"), SENDER)
    await EmailSender(database, mailer, settings, interval_seconds=INTERVAL_SECONDS).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
