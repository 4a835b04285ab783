"""Finds emails to users that a time or their usage causes, and sends all emails of the outbox."""

from __future__ import annotations

import asyncio
from email.message import EmailMessage
from traceback import extract_tb

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import EmailKind
from bloxserver.account_emails.outbox import (
    BATCH,
    CHUNK,
    UNKNOWN,
    ClaimedEmail,
    Outcome,
    begin_attempt,
    claim_emails,
    delete_old_emails,
    end_attempt,
    enqueue,
    postpone,
    read_recipient,
    without_written,
)
from bloxserver.account_emails.rendering import TemplateFailed, Templates, billing_url_of
from bloxserver.account_emails.usage_notices import find_notices
from bloxserver.billing.due_emails import find_due_emails
from bloxserver.clients.mail import Mailer, MailError, compose
from bloxserver.clock import now
from bloxserver.engine.loops import PollLoop
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.database import Database
from bloxserver.observability import metrics
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.account_emails")

FIND_SECONDS = 60.0
SEND_SECONDS = 10.0
STOP_SECONDS = 5.0
"""How long an attempt may continue after the worker was told to stop."""
PLACEHOLDER_DOMAINS = ("unknown", "localhost")
"""Domains of the addresses of users whose sign-in has told none."""
OF_THE_INSTALLATION = ("authentication_failed", "tls_failed", "mail_not_configured")
"""Errors that an operator can remove. The email is not their cause, so it is attempted again."""


class DueEmails:
    """Writes the emails that a time or the usage of a user causes. It runs on every worker; each is written once."""

    def __init__(self, database: Database, *, interval_seconds: float = FIND_SECONDS) -> None:
        self._database = database
        self._interval_seconds = interval_seconds
        self._loop = PollLoop(
            self._poll, failure="finding due emails failed", retry_seconds=interval_seconds, jitter=0.2
        )

    async def run(self) -> None:
        """Write due emails until cancelled."""
        await self._loop.run()

    async def _poll(self) -> float:
        await self.write_due()
        is_left = True
        while is_left:
            async with self._database.transaction() as session:
                is_left = await delete_old_emails(session, now())
        return self._interval_seconds

    async def write_due(self) -> int:
        """Write what is due and not in the outbox. Returns its number."""
        moment = now()
        async with self._database.transaction(read_only=True) as session:
            found = [*await find_due_emails(session, moment), *await find_notices(session, moment)]
            missing = await without_written(session, found)
        # In one order, because processes that insert the same rows wait for each other.
        missing.sort(key=lambda each: (each[0], each[1].key))
        for start in range(0, len(missing), CHUNK):
            async with self._database.transaction() as session:
                await enqueue(session, missing[start : start + CHUNK])
        return len(missing)


class Undeliverable(Exception):
    """Why an email is never sent. The reason contains neither the address nor the content."""


class EmailSender:
    """Sends the emails of the outbox. It runs on every worker; each email is sent by one of them, at most once."""

    def __init__(
        self, database: Database, mailer: Mailer, settings: Settings, *, interval_seconds: float = SEND_SECONDS
    ) -> None:
        """Raises `SettingsError` if a template in `EMAIL_TEMPLATES_DIR` cannot be used."""
        self._database = database
        self._mailer = mailer
        self._billing_url = billing_url_of(settings)
        self._templates = Templates(settings.email_templates_dir)
        self._is_stopping = False
        self._interval_seconds = interval_seconds
        self._loop = PollLoop(self._poll, failure="sending emails failed", retry_seconds=interval_seconds, jitter=0.2)

    async def run(self) -> None:
        """Send due emails until cancelled. Attempts that have begun may then end."""
        await self._loop.run()

    async def _poll(self) -> float:
        sending = asyncio.create_task(self.send_due())
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            # The outcome of an attempt that is cut off would be unknown.
            self._is_stopping = True
            try:
                await asyncio.wait([sending], timeout=STOP_SECONDS)
            finally:
                sending.cancel()
            raise
        return self._interval_seconds

    async def send_due(self) -> int:
        """Attempt each due email once. Returns the number of attempts."""
        attempts, number = 0, BATCH
        while number == BATCH and not self._is_stopping:
            claimed = await retry_transaction(self._database, lambda session: claim_emails(session, now()))
            number = len(claimed)
            await asyncio.gather(*(self._attempt(email) for email in claimed))
            attempts += number
        return attempts

    async def _attempt(self, email: ClaimedEmail) -> None:
        """Send the email, and record the outcome. An email whose outcome cannot be recorded is not sent again."""
        try:
            outcome, error = await self._send(email)
        except Exception as bug:
            # Without the error's text, which may contain an address. The claim ends by itself.
            place = extract_tb(bug.__traceback__)[-1]
            log.error(
                "email to a user not attempted",
                email_id=str(email.id),
                kind=email.kind,
                error=type(bug).__name__,
                place=f"{place.filename}:{place.lineno}",
            )
            return
        metrics.ACCOUNT_EMAILS.labels(outcome.value).inc()
        level = log.info if outcome in (Outcome.SENT, Outcome.RETRIED) else log.warning
        level("email to a user", outcome=outcome.value, email_id=str(email.id), kind=email.kind, error=error)

    async def _send(self, email: ClaimedEmail) -> tuple[Outcome, str | None]:
        try:
            mail = await self._compose(email)
        except Undeliverable as problem:
            return await self._end(email, Outcome.FAILED, str(problem))
        if not await retry_transaction(self._database, lambda session: begin_attempt(session, email, now())):
            return Outcome.RETRIED, "the claim has ended"
        try:
            await self._mailer.send(mail)
        except MailError as problem:
            if problem.is_uncertain:
                return await self._end(email, Outcome.UNKNOWN, UNKNOWN)
            can_succeed = problem.retryable or problem.code in OF_THE_INSTALLATION
            outcome = Outcome.RETRIED if can_succeed else Outcome.FAILED
            return await self._end(email, outcome, problem.code)
        return await self._end(email, Outcome.SENT, None)

    async def _compose(self, email: ClaimedEmail) -> EmailMessage:
        """The mail to the current address of the user. Raises `Undeliverable`."""
        async with self._database.transaction(read_only=True) as session:
            recipient = await read_recipient(session, email.user_id)
        if recipient is None or recipient.address.rpartition("@")[2] in ("", *PLACEHOLDER_DOMAINS):
            raise Undeliverable("the user has no email address")
        try:
            kind = EmailKind(email.kind)
        except ValueError:  # of a newer version
            raise Undeliverable("the kind is unknown") from None
        try:
            rendered = self._templates.render(kind, email.data, name=recipient.name, billing_url=self._billing_url)
        except TemplateFailed as error:
            raise Undeliverable(str(error)) from None
        try:
            return compose(
                # The same for each attempt.
                key=f"account-email:{email.user_id}:{email.event_key}",
                moment=email.created_at,
                sender=self._mailer.sender or "",
                to=[recipient.address],
                subject=rendered.subject,
                text=rendered.text,
                html=rendered.html,
            )
        except ValueError:
            raise Undeliverable("the address of the user, or SMTP_FROM, is not valid") from None

    async def _end(self, email: ClaimedEmail, outcome: Outcome, error: str | None) -> tuple[Outcome, str | None]:
        async def end(session: AsyncSession) -> None:
            if outcome is Outcome.RETRIED:
                await postpone(session, email, now(), error or "")
            else:
                await end_attempt(session, email, now(), error)

        await retry_transaction(self._database, end)
        return outcome, error
