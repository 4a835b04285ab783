"""Delivers failure notifications by HTTP request or by mail, with a limited number of retries."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from traceback import extract_tb
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks import templates
from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.values import MAX_STEPS, Budget, CostLimitExceeded
from bloxserver.clients.http import DEPTH_HEADER, GuardedClient, OutgoingRequestError
from bloxserver.clients.mail import Mailer, MailError
from bloxserver.clients.shares import OutgoingShares, Share
from bloxserver.clients.signatures import identify, sign
from bloxserver.clock import now
from bloxserver.encryption import get_cipher
from bloxserver.engine.background.notification_rows import (
    Cause,
    ClaimedNotification,
    DueNotification,
    claim_notification,
    end_attempt,
    event_of,
    mail_of,
    read_due_notifications,
    read_failure,
    read_notice,
)
from bloxserver.engine.backoff import backoff_seconds
from bloxserver.engine.emails import EmailCounter
from bloxserver.engine.loops import PollLoop
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.database import Database
from bloxserver.models.enums import NotificationChannel
from bloxserver.organism.load import parse_organism
from bloxserver.organism.problems import OrganismError
from bloxserver.queries.users import read_plan
from bloxserver.services.secrets import SecretUnavailable, decrypt_secrets
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.notices")

BATCH = 10
"""Notifications that a process sends concurrently."""
MAX_ATTEMPTS = 6
INITIAL_BACKOFF_SECONDS = 120
MAX_BACKOFF_SECONDS = 86_400
BACKOFF_FACTOR = 4.0
"""With exponential backoff, the last attempt is half a day after the first."""
REQUEST_SECONDS = 15
ATTEMPT = timedelta(minutes=5)
"""Longer than any attempt takes. An attempt without a result by then is repeated by any process."""
MIN_PAUSE_SECONDS = 0.2


class DeliveryError(Exception):
    """Why an attempt failed. The reason contains neither addresses nor secrets. A `final` error is not retried."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class NotificationSender:
    """Sends due notifications. It runs on every worker; each notification is claimed by one of them."""

    def __init__(
        self,
        database: Database,
        http: GuardedClient,
        mailer: Mailer,
        settings: Settings,
        shares: OutgoingShares | None = None,
    ) -> None:
        """`shares` are those of the worker's executions."""
        self._database = database
        self._http = http
        self._mailer = mailer
        self._shares = shares or OutgoingShares()
        self._cipher = get_cipher(settings)
        self._poll_interval_seconds = settings.poll_interval_seconds
        self._loop = PollLoop(
            self._poll,
            failure="sending failure notifications failed",
            retry_seconds=self._poll_interval_seconds,
            min_interval_seconds=MIN_PAUSE_SECONDS,
        )

    def wake(self) -> None:
        """Send due notifications now; to be called on the event loop."""
        self._loop.wake()

    async def run(self) -> None:
        """Send due notifications until cancelled."""
        await self._loop.run()

    async def _poll(self) -> float:
        await self.deliver_due()
        return self._poll_interval_seconds

    async def deliver_due(self) -> int:
        """Attempt each due notification once. Returns the number of attempts."""
        attempts = 0
        while True:
            async with self._database.transaction(read_only=True) as session:
                due = await read_due_notifications(session, now(), BATCH)
            attempted = sum(await asyncio.gather(*(self._attempt(notification) for notification in due)))
            attempts += attempted
            if attempted < BATCH:
                return attempts

    async def _attempt(self, due: DueNotification) -> bool:
        """Returns whether an attempt was made. False if another process makes it, or on a database error."""
        try:
            notification = await self._claim(due)
            if notification is None:
                return False
            await self._record(notification, await self._problem(notification))
        except Exception as error:
            log.error("failure notification not attempted", notification_id=str(due.id), exc_info=error)
            return False
        return True

    async def _claim(self, due: DueNotification) -> ClaimedNotification | None:
        async def claim(session: AsyncSession) -> ClaimedNotification | None:
            return await claim_notification(session, due, now() + ATTEMPT)

        return await retry_transaction(self._database, claim)

    async def _problem(self, notification: ClaimedNotification) -> DeliveryError | None:
        """Send the notification; returns the error, or None if it was delivered."""
        try:
            await self._send(notification)
        except DeliveryError as problem:
            return problem
        except Exception as bug:
            # Without the error's text, which may contain an address.
            place = extract_tb(bug.__traceback__)[-1]
            log.error(
                "failure notification failed unexpectedly",
                notification_id=str(notification.id),
                error=type(bug).__name__,
                place=f"{place.filename}:{place.lineno}",
            )
            return DeliveryError("internal error")
        return None

    async def _record(self, notification: ClaimedNotification, problem: DeliveryError | None) -> None:
        due_at = None
        if problem is not None and not problem.final and notification.attempts < MAX_ATTEMPTS:
            due_at = now() + backoff_after(notification.attempts)
        error = None if problem is None else str(problem)
        await retry_transaction(
            self._database, lambda session: end_attempt(session, notification, error=error, due_at=due_at)
        )
        outcome = "delivered" if problem is None else "failed" if due_at is None else "retry scheduled"
        log.info(
            "failure notification",
            outcome=outcome,
            channel=notification.channel.value,
            **_subject(notification),
            attempt=notification.attempts,
            reason=error,
        )

    async def _send(self, notification: ClaimedNotification) -> None:
        """Send the notification to its recipient. Raises `DeliveryError`."""
        if notification.attempts > MAX_ATTEMPTS:
            raise DeliveryError("the server stopped during the last attempt", final=True)
        cause = await self._cause(notification)
        try:
            organism = await parse_organism(cause.organism_yaml, cause.user_id)
        except OrganismError:
            raise DeliveryError("the definition is no longer valid", final=True) from None
        recipients = organism.on_failure
        if recipients is not None and notification.channel is NotificationChannel.URL and recipients.url is not None:
            url, secret = await self._filled(cause.user_id, recipients.url, recipients.secret or "")
            await self._post(notification.id, cause, url, secret)
        elif (
            recipients is not None
            and notification.channel is NotificationChannel.EMAIL
            and recipients.email is not None
        ):
            [address] = await self._filled(cause.user_id, recipients.email)
            await self._mail(notification.id, cause, address)
        else:
            raise DeliveryError("the definition no longer names this recipient", final=True)

    async def _cause(self, notification: ClaimedNotification) -> Cause:
        """What the notification is about. Raises `DeliveryError`."""
        cause: Cause | None
        async with self._database.transaction(read_only=True) as session:
            if notification.execution_id is not None:
                cause = await read_failure(session, notification.execution_id)
            else:
                cause = await read_notice(session, notification.id)
        if cause is None:
            what = "execution" if notification.execution_id else "trigger" if notification.trigger_id else "flow"
            raise DeliveryError(f"the {what} was deleted", final=True)
        return cause

    async def _filled(self, user_id: UUID, *texts: str) -> list[str]:
        """The texts with their secret placeholders replaced. Raises `DeliveryError`."""
        names = {name for text in texts for name in templates.secret_names(text)}
        try:
            async with self._database.transaction(read_only=True) as session:
                secrets = await decrypt_secrets(session, self._cipher, user_id, names) if names else {}
        except SecretUnavailable as error:
            raise DeliveryError(error.message) from None
        try:
            budget = Budget(MAX_STEPS)
            return [str(templates.render(text, {"secrets": dict(secrets)}, budget)) for text in texts]
        except BlockError as error:
            raise DeliveryError(f"execution.on_failure cannot be filled in ({error.code})", final=True) from None
        except CostLimitExceeded:
            raise DeliveryError("execution.on_failure is too long", final=True) from None

    async def _post(self, notification_id: UUID, cause: Cause, url: str, secret: str) -> None:
        body, moment = event_of(cause), now()
        try:
            response = await self._http.limited_to(await self._share(cause.user_id)).request(
                "POST",
                url,
                headers={
                    "Content-Type": "application/json",
                    # The depth limit ends a flow whose notifications call its own webhook.
                    DEPTH_HEADER: str(cause.depth + 1),
                    **_signature(secret, str(notification_id), moment, body),
                },
                content=body,
                timeout_seconds=REQUEST_SECONDS,
            )
        except OutgoingRequestError as error:
            raise DeliveryError(f"the request failed ({error.code})", final=not error.retryable) from None
        if not 200 <= response.status < 300:
            gone = response.status == HTTPStatus.GONE
            raise DeliveryError(f"the server answered {response.status}", final=gone)

    async def _share(self, user_id: UUID) -> Share:
        async with self._database.transaction(read_only=True) as session:
            return self._shares.of(user_id, await read_plan(session, user_id))

    async def _mail(self, notification_id: UUID, cause: Cause, address: str) -> None:
        sender = self._mailer.sender
        if self._mailer.default is None or not sender:
            raise DeliveryError("this server sends no mail: SMTP_HOST and SMTP_FROM must be set", final=True)
        try:
            mail = mail_of(cause, notification_id, sender=sender, address=address)
        except ValueError:
            raise DeliveryError(
                "execution.on_failure.email is no address that mail can be sent to", final=True
            ) from None
        try:
            mailer = self._mailer.limited_to(
                await self._share(cause.user_id), EmailCounter(self._database, cause.user_id)
            )
            await mailer.send(mail)
        except MailError as error:
            raise DeliveryError(f"the mail was not sent ({error.code})", final=not error.retryable) from None


def _subject(notification: ClaimedNotification) -> dict[str, str]:
    """The log fields that identify the execution, the trigger or the flow."""
    if notification.execution_id is not None:
        return {"execution_id": str(notification.execution_id)}
    if notification.trigger_id is not None:
        return {"trigger_id": str(notification.trigger_id)}
    return {"flow_id": str(notification.flow_id)}


def backoff_after(attempts: int) -> timedelta:
    """The backoff after this number of failed attempts: 2 minutes, then 4 times as long each time."""
    seconds = backoff_seconds(
        attempts, initial=INITIAL_BACKOFF_SECONDS, maximum=MAX_BACKOFF_SECONDS, factor=BACKOFF_FACTOR, jitter=0.2
    )
    return timedelta(seconds=seconds)


def _signature(secret: str, message_id: str, moment: datetime, body: bytes) -> Mapping[str, str]:
    """The Standard Webhooks headers: id, timestamp and, with a secret, the signature. Raises `DeliveryError`."""
    try:
        return sign(secret, message_id, moment, body) if secret else identify(message_id, moment)
    except ValueError:
        raise DeliveryError("execution.on_failure.secret is no valid signing secret", final=True) from None
