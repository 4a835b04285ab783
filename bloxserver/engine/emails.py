"""Counts emails before they are sent, in a transaction of its own."""

from __future__ import annotations

from uuid import UUID

from bloxserver.clients.mail import MailError
from bloxserver.clock import now
from bloxserver.engine.retry import retry_transaction
from bloxserver.errors import LimitReached
from bloxserver.models.database import Database
from bloxserver.services.emails import count_emails


class EmailCounter:
    """Counts the emails of one user."""

    def __init__(self, database: Database, user_id: UUID) -> None:
        self._database = database
        self._user_id = user_id

    async def __call__(self, recipients: int) -> None:
        """Count one email for each recipient. Raises `MailError` at the limit."""
        try:
            await retry_transaction(
                self._database, lambda session: count_emails(session, self._user_id, recipients, now())
            )
        except LimitReached as error:
            raise MailError(error.code, error.message, retryable=True) from None
