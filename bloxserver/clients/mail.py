"""Composes mails and submits them to an SMTP server."""

from __future__ import annotations

import asyncio
import copy
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from email.errors import InvalidHeaderDefect
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal, Self

import httpx
from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPRecipientsRefused,
    SMTPResponse,
    SMTPResponseException,
)

from bloxserver.clients.addresses import Address, Network
from bloxserver.clients.connections import CONNECT_SECONDS, check_addresses
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.mail_headers import (
    AddressHeader,
    Mailbox,
    Senders,
    TextHeader,
    check_headers,
    read_mailbox,
    read_mailboxes,
    sender_problem,
)
from bloxserver.clients.resolver import Resolver
from bloxserver.clients.shares import UNLIMITED, Share
from bloxserver.settings import Settings

PORTS = frozenset({25, 465, 587, 2525})
QUIT_TIMEOUT_SECONDS = 2.0

Security = Literal["starttls", "tls", "none"]
CountRecipients = Callable[[int], Awaitable[None]]
"""Counts the recipients of a mail before it is submitted. Raises `MailError` if the user may not send that many."""


@dataclass(frozen=True)
class MailServer:
    """An SMTP server that mail is submitted to, and the credentials for it."""

    host: str
    port: int
    security: Security = "starttls"
    username: str | None = None
    password: str | None = field(default=None, repr=False)


class MailError(Exception):
    """A mail that no server accepted. The message names the server and its reply code, never a credential.

    Codes: `mail_not_configured`, `invalid_address`, `invalid_mail`, `address_refused`, `port_refused`,
    `name_not_resolved`, `connection_failed`, `tls_failed`, `timeout`, `invalid_response`, `authentication_failed`,
    `recipients_refused`, `sender_refused`, `mail_refused`, `emails_per_day_limit_reached`.
    """

    def __init__(self, code: str, message: str, retryable: bool, *, is_uncertain: bool = False) -> None:
        """`is_uncertain` tells that the server may have accepted the mail, because its answer was not received."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.is_uncertain = is_uncertain


def compose(
    *,
    key: str,
    moment: datetime,
    sender: str,
    to: Sequence[str],
    subject: str,
    text: str | None = None,
    html: str | None = None,
    cc: Sequence[str] = (),
    reply_to: str | None = None,
) -> EmailMessage:
    """A mail. Mails with the same `key` have the same Message-ID, so that a mail program shows two of them as one.

    Each string of `to` and `cc` may list several addresses, separated by commas. Nothing is decoded: `=?utf-8?q?…?=`
    arrives as these characters. Raises `ValueError` for an invalid address, and for text that no mail can contain.
    """
    author = read_mailbox(sender)
    message = EmailMessage()
    message["From"] = AddressHeader.of("From", [author])
    for name, lists in (("To", to), ("Cc", cc)):
        if mailboxes := [mailbox for text in lists for mailbox in read_mailboxes(text)]:
            message[name] = AddressHeader.of(name, mailboxes)
    if "To" not in message:
        raise ValueError("a mail needs at least one recipient")
    if reply_to is not None:
        message["Reply-To"] = AddressHeader.of("Reply-To", [read_mailbox(reply_to)])
    message["Subject"] = TextHeader.of("Subject", subject)
    message["Date"] = moment
    message["Message-ID"] = f"<{sha256(key.encode()).hexdigest()[:32]}@{author.domain}>"
    if text is not None:
        message.set_content(_check_body(text))
    if html is not None and text is not None:
        message.add_alternative(_check_body(html), subtype="html")
    elif html is not None:
        message.set_content(_check_body(html), subtype="html")
    return message


class _Session(SMTP):
    """A session that knows whether it has sent the command `DATA`. Before it, no server can have accepted a mail."""

    has_begun = False

    async def data(self, message: str | bytes, /, **options: Any) -> SMTPResponse:
        self.has_begun = True
        return await super().data(message, **options)


def _check_body(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError("a mail can contain neither NUL nor half a surrogate pair")
    return text


class Mailer:
    """Submits mail to the server of the installation, or to the server that a caller names.

    A server that a caller names must be on the public internet and listen on a port for mail, or be inside `allow`, as
    for other outgoing requests. `tls` validates certificates.
    """

    def __init__(
        self,
        default: MailServer | None,
        sender: str | None,
        allow: Sequence[Network] = (),
        *,
        senders: Senders = "fixed",
        tls: ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self.default = default
        self.sender = sender
        self._allow = tuple(allow)
        self._given_tls = tls
        self._senders = senders
        self._resolver = resolver or Resolver()
        self._share = UNLIMITED
        self._count: CountRecipients | None = None

    def limited_to(self, share: Share, count: CountRecipients | None = None) -> Self:
        """Return this mailer with the limits of one user. `count` is called for mails to the installation's server."""
        mailer = copy.copy(self)
        mailer._share = share
        mailer._count = count
        return mailer

    async def send(
        self, message: EmailMessage, server: MailServer | None = None, *, timeout_seconds: float = 30
    ) -> list[str]:
        """The addresses that the server accepted the mail for. It refused the other recipients.

        `timeout_seconds` limits the whole call. From, Date and Message-ID are added if they are missing.
        Raises `MailError`, also if the server accepted no address.
        """
        chosen = server or self.default
        if chosen is None:
            raise MailError(
                "mail_not_configured", "no mail server is configured: SMTP_HOST is not set", retryable=False
            )
        complete, sender, recipients = self._add_headers(message)
        if server is None:
            self._check_sender(complete["From"].addresses[0])
        session: _Session | None = None
        try:
            async with asyncio.timeout(timeout_seconds) as deadline, self._share.request():
                if server is None and self._count is not None:
                    await self._count(len(recipients))
                async with self._session(chosen, guarded=server is not None, name=_domain(sender)) as session:
                    refused, _ = await session.send_message(complete, sender=sender, recipients=recipients)
                    # The server has accepted the mail. A later failure must not cause a second submission.
                    deadline.reschedule(None)
                    with suppress(Exception):
                        async with asyncio.timeout(QUIT_TIMEOUT_SECONDS):
                            await session.quit()
        except MailError:
            raise
        except Exception as error:
            failure = _to_mail_error(error, chosen.host)
            failure.is_uncertain = session is not None and session.has_begun and not _is_answer(error)
            raise failure from None
        return [address for address in recipients if address not in refused]

    def _check_sender(self, sender: Mailbox) -> None:
        problem = sender_problem(sender, self._own_mailbox(), self._senders)
        if problem is not None:
            raise MailError("sender_refused", f"{problem}; omit from, or set a server", retryable=False)

    def _own_mailbox(self) -> Mailbox:
        """The address in SMTP_FROM."""
        if not self.sender:
            raise MailError("mail_not_configured", "no sender is configured: SMTP_FROM is not set", retryable=False)
        try:
            return read_mailbox(self.sender)
        except ValueError:
            raise MailError("mail_not_configured", "SMTP_FROM is not a valid address", retryable=False) from None

    def _add_headers(self, message: EmailMessage) -> tuple[EmailMessage, str, list[str]]:
        """The mail as it is submitted, with the addresses of its sender and its recipients."""
        complete = copy.deepcopy(message)
        try:
            check_headers(complete)
        except ValueError as error:
            raise MailError("invalid_mail", str(error), retryable=False) from None
        if "From" not in complete:
            complete["From"] = AddressHeader.of("From", [self._own_mailbox()])
        senders = _addresses(complete, "From")
        recipients = list(dict.fromkeys(each for name in ("To", "Cc", "Bcc") for each in _addresses(complete, name)))
        if len(senders) != 1 or not recipients:
            raise MailError("invalid_address", "a mail needs one sender and at least one recipient", retryable=False)
        if "Date" not in complete:
            complete["Date"] = localtime()
        if "Message-ID" not in complete:
            complete["Message-ID"] = make_msgid(domain=_domain(senders[0]))
        return complete, senders[0], recipients

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or httpx.create_ssl_context(trust_env=False)

    @asynccontextmanager
    async def _session(self, server: MailServer, *, guarded: bool, name: str) -> AsyncIterator[_Session]:
        """An authenticated session. `name` is the host name that the client announces."""
        addresses = await self._resolver.resolve(server.host, self._share)
        if guarded:
            check_addresses(addresses, server.host, server.port, self._allow, PORTS)
        client = _Session(
            hostname=server.host,
            sock=await _connect(addresses, server.port),
            local_hostname=name,
            use_tls=server.security == "tls",
            start_tls=False,
            tls_context=self._tls if server.security != "none" else None,
            timeout=None,
        )
        try:
            await client.connect()
            if server.security == "starttls":
                await client.ehlo()
                if not client.supports_extension("starttls"):
                    raise MailError("tls_failed", f"{server.host} does not offer STARTTLS", retryable=False)
                await client.starttls()
            if server.username is not None:
                await client.ehlo()
                if not client.supports_extension("auth"):
                    raise MailError(
                        "authentication_failed", f"{server.host} does not support authentication", retryable=False
                    )
                await client.login(server.username, server.password or "")
            yield client
        finally:
            client.close()


def create_mailer(settings: Settings) -> Mailer:
    """Create the mailer of an installation."""
    server = None
    if settings.smtp_host is not None:
        password = settings.smtp_password
        server = MailServer(
            host=settings.smtp_host,
            port=settings.smtp_port,
            security=settings.smtp_security,
            username=settings.smtp_username,
            password=None if password is None else password.get_secret_value(),
        )
    return Mailer(server, settings.smtp_from, settings.ssrf_allow_cidrs, senders=settings.smtp_senders)


def _addresses(message: EmailMessage, header: str) -> list[str]:
    """The addresses in the headers of that name, without display names."""
    values = message.get_all(header, [])
    try:
        if any(isinstance(defect, InvalidHeaderDefect) for value in values for defect in value.defects):
            raise ValueError(f"{header} is not a list of addresses")
        return [read_mailbox(each.addr_spec).addr_spec for value in values for each in value.addresses]
    except ValueError as error:
        raise MailError("invalid_address", str(error), retryable=False) from None


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


async def _connect(addresses: Sequence[Address], port: int) -> socket.socket:
    """A connection to the first address that accepts one."""
    loop = asyncio.get_running_loop()
    failure: Exception | None = None
    for address in addresses:
        connection = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
        connection.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.sock_connect(connection, (str(address), port))
        except OSError as error:  # including TimeoutError
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure or ConnectionError("no address")


def _is_answer(error: Exception) -> bool:
    """Whether the server has refused the mail."""
    return isinstance(error, SMTPRecipientsRefused) or (isinstance(error, SMTPResponseException) and error.code >= 400)


def _to_mail_error(error: Exception, host: str) -> MailError:
    """The error for the caller. Raises `error` itself if the server is not its cause."""
    match error:
        case OutgoingRequestError():
            return MailError(error.code, error.message, error.retryable)
        case ssl.SSLError() | SMTPConnectError(__cause__=ssl.SSLError()):
            return MailError("tls_failed", f"{host} has no trusted certificate", retryable=False)
        case SMTPRecipientsRefused():
            codes = sorted({refusal.code for refusal in error.recipients})
            message = f"{host} rejected all recipients ({', '.join(str(code) for code in codes)})"
            return MailError("recipients_refused", message, retryable=any(400 <= code < 500 for code in codes))
        case SMTPResponseException(code=code) if code < 200:
            return MailError("invalid_response", f"the response of {host} cannot be read", retryable=True)
        case SMTPAuthenticationError(code=code):
            message = f"{host} rejected the user name or the password ({code})"
            return MailError("authentication_failed", message, retryable=400 <= code < 500)
        case SMTPResponseException(code=code):
            return MailError("mail_refused", f"{host} answered {code}", retryable=400 <= code < 500)
        case TimeoutError():
            return MailError("timeout", f"{host} took too long", retryable=True)
        case OSError():
            return MailError("connection_failed", f"the connection to {host} failed", retryable=True)
        case SMTPException():
            return MailError("mail_refused", f"{host} does not support a feature that the email needs", retryable=False)
        case ValueError():
            return MailError("invalid_response", f"the response of {host} cannot be read", retryable=True)
    raise error
