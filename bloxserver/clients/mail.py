"""Mail: how it is put together, and how it is handed in at a server."""

from __future__ import annotations

import asyncio
import copy
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from email.errors import InvalidHeaderDefect
from email.headerregistry import Address as Mailbox
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from functools import cached_property
from hashlib import sha256
from typing import Literal

import httpx
from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPRecipientsRefused,
    SMTPResponseException,
)

from bloxserver.clients.addresses import Address, Network
from bloxserver.clients.connections import CONNECT_SECONDS, check_addresses
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.resolver import Resolver
from bloxserver.settings import Settings

PORTS = frozenset({25, 465, 587, 2525})
GOODBYE_SECONDS = 2.0
MAX_MAILBOX = 320
MAILBOX = re.compile(r'(?:"?(?P<name>[^"<>]*?)"?\s*<(?P<inner>[^<>\s]+)>|(?P<bare>[^<>\s]+))')
LOCAL_PART = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What could end a line of a mail's head, or is no text."""

Security = Literal["starttls", "tls", "none"]


@dataclass(frozen=True)
class MailServer:
    """Where mail is handed in, and as whom."""

    host: str
    port: int
    security: Security = "starttls"
    username: str | None = None
    password: str | None = field(default=None, repr=False)


class MailError(Exception):
    """Mail that was not handed in. The message names the server and what it answered, never a credential.

    Codes: `mail_not_configured`, `invalid_address`, `address_refused`, `port_refused`, `name_not_resolved`,
    `connection_failed`, `tls_failed`, `timeout`, `invalid_response`, `authentication_failed`,
    `recipients_refused`, `sender_refused`, `mail_refused`.
    """

    def __init__(self, code: str, message: str, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable


def read_mailbox(text: str) -> Mailbox:
    """The address that `text` spells, like `ada@example.com` or `Ada <ada@example.com>`. Raises `ValueError`."""
    found = None if len(text) > MAX_MAILBOX or UNSAFE.search(text) else MAILBOX.fullmatch(text.strip())
    local, _, domain = (found["inner"] or found["bare"] if found else "").rpartition("@")
    try:
        domain = domain.encode("idna").decode()
    except UnicodeError:
        domain = ""
    if found is None or not LOCAL_PART.fullmatch(local) or len(local) > 64 or not DOMAIN.fullmatch(domain):
        raise ValueError("an address must be like ada@example.com or Ada <ada@example.com>")
    return Mailbox(found["name"] or "", local, domain)


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
    """A mail. Two of one `key` bear one Message-ID, so that whoever gets both sees one.

    Raises `ValueError` for what is no address, and for text that no mail can carry.
    """
    if UNSAFE.search(subject):
        raise ValueError("a subject must be one line of text")
    author = read_mailbox(sender)
    message = EmailMessage()
    message["From"] = author
    message["To"] = [read_mailbox(address) for address in to]
    if cc:
        message["Cc"] = [read_mailbox(address) for address in cc]
    if reply_to is not None:
        message["Reply-To"] = read_mailbox(reply_to)
    message["Subject"] = subject
    message["Date"] = moment
    message["Message-ID"] = f"<{sha256(key.encode()).hexdigest()[:32]}@{author.domain}>"
    if text is not None:
        message.set_content(_checked_body(text))
    if html is not None and text is not None:
        message.add_alternative(_checked_body(html), subtype="html")
    elif html is not None:
        message.set_content(_checked_body(html), subtype="html")
    return message


def _checked_body(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError("a mail can hold neither NUL nor half a surrogate pair")
    return text


class Mailer:
    """Hands mail in, at the installation's server unless another is named.

    A server that somebody names is guarded as other outgoing requests are: it must be on the public internet, on a
    port for mail, or inside `allow`. `tls` is what certificates must satisfy.
    """

    def __init__(
        self,
        default: MailServer | None,
        sender: str | None,
        allow: Sequence[Network] = (),
        *,
        tls: ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self.default = default
        self.sender = sender
        self._allow = tuple(allow)
        self._given_tls = tls
        self._resolver = resolver or Resolver()

    async def send(
        self, message: EmailMessage, server: MailServer | None = None, *, timeout_seconds: float = 30
    ) -> list[str]:
        """The addresses that the server accepted the mail for; the others it refused.

        `timeout_seconds` is for all of it. From, Date and Message-ID are added where they are missing.
        Raises `MailError`, also where no address at all was accepted.
        """
        chosen = server or self.default
        if chosen is None:
            raise MailError("mail_not_configured", "there is no mail server: SMTP_HOST is not set", retryable=False)
        complete, sender, recipients = self._completed(message)
        if server is None:
            self._check_sender(sender)
        try:
            async with (
                asyncio.timeout(timeout_seconds) as deadline,
                self._session(chosen, guarded=server is not None, name=_domain(sender)) as session,
            ):
                refused, _ = await session.send_message(complete, sender=sender, recipients=recipients)
                # The mail is the server's now: what still goes wrong must not have it sent again.
                deadline.reschedule(None)
                with suppress(Exception):
                    async with asyncio.timeout(GOODBYE_SECONDS):
                        await session.quit()
        except MailError:
            raise
        except Exception as error:
            raise _meaning(error, chosen.host) from None
        return [address for address in recipients if address not in refused]

    def _check_sender(self, sender: str) -> None:
        """Nobody writes in another's name through the installation's server."""
        domain = _domain(read_mailbox(self.sender).addr_spec) if self.sender else _domain(sender)
        if _domain(sender).lower() != domain.lower():
            message = f"this server sends for {domain} alone; leave from out, or name a mail server of your own"
            raise MailError("sender_refused", message, retryable=False)

    def _completed(self, message: EmailMessage) -> tuple[EmailMessage, str, list[str]]:
        """The mail as it goes out, with the addresses of its sender and its recipients."""
        complete = copy.deepcopy(message)
        if "From" not in complete:
            if self.sender is None:
                raise MailError("mail_not_configured", "there is no sender: SMTP_FROM is not set", retryable=False)
            complete["From"] = self.sender
        senders = _addresses(complete, "From")
        recipients = list(dict.fromkeys(each for name in ("To", "Cc", "Bcc") for each in _addresses(complete, name)))
        if len(senders) != 1 or not recipients:
            raise MailError("invalid_address", "a mail needs one sender and somebody to go to", retryable=False)
        if "Date" not in complete:
            complete["Date"] = localtime()
        if "Message-ID" not in complete:
            complete["Message-ID"] = make_msgid(domain=_domain(senders[0]))
        return complete, senders[0], recipients

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or httpx.create_ssl_context(trust_env=False)

    @asynccontextmanager
    async def _session(self, server: MailServer, *, guarded: bool, name: str) -> AsyncIterator[SMTP]:
        """A session with a server that knows who we are; `name` is what we call our machine."""
        addresses = await self._resolver.resolve(server.host)
        if guarded:
            check_addresses(addresses, server.host, server.port, self._allow, PORTS)
        client = SMTP(
            hostname=server.host,
            sock=await _dial(addresses, server.port),
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
                    raise MailError("authentication_failed", f"{server.host} asks for no password", retryable=False)
                await client.login(server.username, server.password or "")
            yield client
        finally:
            client.close()


def mailer_of(settings: Settings) -> Mailer:
    """The mailer of an installation."""
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
    return Mailer(server, settings.smtp_from, settings.ssrf_allow_cidrs)


def _addresses(message: EmailMessage, header: str) -> list[str]:
    """The addresses in the headers of that name, without what people are called."""
    values = message.get_all(header, [])
    try:
        if any(isinstance(defect, InvalidHeaderDefect) for value in values for defect in value.defects):
            raise ValueError(f"{header} is not a list of addresses")
        return [read_mailbox(each.addr_spec).addr_spec for value in values for each in value.addresses]
    except ValueError as error:
        raise MailError("invalid_address", str(error), retryable=False) from None


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


async def _dial(addresses: Sequence[Address], port: int) -> socket.socket:
    """A connection to the first address that lets us in."""
    loop = asyncio.get_running_loop()
    failure: Exception | None = None
    for address in addresses:
        connection = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
        connection.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.sock_connect(connection, (str(address), port))
        except OSError as error:  # a TimeoutError is one as well
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure or ConnectionError("no address")


def _meaning(error: Exception, host: str) -> MailError:
    """What a failure means for whoever sent the mail; one that is none of the server's is raised as it is."""
    match error:
        case OutgoingRequestError():
            return MailError(error.code, error.message, error.retryable)
        case ssl.SSLError() | SMTPConnectError(__cause__=ssl.SSLError()):
            return MailError("tls_failed", f"no TLS connection to {host} can be trusted", retryable=False)
        case SMTPRecipientsRefused():
            codes = sorted({refusal.code for refusal in error.recipients})
            told = f"{host} refused all recipients ({', '.join(str(code) for code in codes)})"
            return MailError("recipients_refused", told, retryable=any(400 <= code < 500 for code in codes))
        case SMTPResponseException(code=code) if code < 200:
            return MailError("invalid_response", f"the answer of {host} cannot be read", retryable=True)
        case SMTPAuthenticationError(code=code):
            told = f"{host} refused user name and password ({code})"
            return MailError("authentication_failed", told, retryable=400 <= code < 500)
        case SMTPResponseException(code=code):
            return MailError("mail_refused", f"{host} answered {code}", retryable=400 <= code < 500)
        case TimeoutError():
            return MailError("timeout", f"{host} took too long", retryable=True)
        case OSError():
            return MailError("connection_failed", f"the connection to {host} failed", retryable=True)
        case SMTPException():
            return MailError("mail_refused", f"{host} cannot do what the mail needs", retryable=False)
        case ValueError():
            return MailError("invalid_response", f"the answer of {host} cannot be read", retryable=True)
    raise error
