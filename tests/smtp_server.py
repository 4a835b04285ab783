"""SMTP servers on 127.0.0.1: a real one with certificates, and scripted ones."""

from __future__ import annotations

import asyncio
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.listening import listening


@dataclass(frozen=True)
class ReceivedMail:
    """A received email."""

    sender: str
    recipients: list[str]
    message: EmailMessage
    content: bytes
    encrypted: bool
    user: str | None
    client: str
    """The host name in the client's greeting."""


@dataclass
class SmtpServer:
    """Accepts mail. `refusals` maps an address, or `DATA` for a whole email, to the response."""

    port: int = 0
    refusals: dict[str, str] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    """Passwords by user name."""
    received: list[ReceivedMail] = field(default_factory=list)
    sessions: int = 0

    async def handle_EHLO(  # noqa: N802  # the name that aiosmtpd looks for
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        self.sessions += 1
        session.host_name = hostname
        return responses

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.users and not session.authenticated:
            return "530 who are you?"
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = self.refusals.get(address)
        if refusal is None:
            envelope.rcpt_tos.append(address)
        return refusal or "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if "DATA" in self.refusals:
            return self.refusals["DATA"]
        assert isinstance(envelope.content, bytes)
        assert envelope.mail_from is not None
        user = session.auth_data.login.decode() if isinstance(session.auth_data, LoginPassword) else None
        self.received.append(
            ReceivedMail(
                sender=envelope.mail_from,
                recipients=envelope.rcpt_tos,
                message=message_from_bytes(envelope.content, policy=policy.default),
                content=envelope.content,
                encrypted=server.transport is not None and server.transport.get_extra_info("sslcontext") is not None,
                user=user,
                client=session.host_name or "",
            )
        )
        return "250 OK"

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object
    ) -> AuthResult:
        known = isinstance(data, LoginPassword) and self.users.get(data.login.decode()) == data.password.decode()
        return AuthResult(success=known, auth_data=data, handled=False)


@asynccontextmanager
async def running_smtp_server(
    *, starttls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None, users: dict[str, str] | None = None
) -> AsyncIterator[SmtpServer]:
    """A server with STARTTLS or TLS. With `users`, it accepts mail only from them."""
    server = SmtpServer(users=users or {})
    loop = asyncio.get_running_loop()
    sessions: list[SMTP] = []

    def session() -> SMTP:
        protocol = SMTP(
            server,
            hostname="mail.test",
            tls_context=starttls,
            authenticator=server.authenticate,
            auth_require_tls=False,
            loop=loop,
        )
        sessions.append(protocol)
        return protocol

    listener = await loop.create_server(session, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for protocol in sessions:
            if protocol.transport is not None:
                protocol.transport.close()
        await listener.wait_closed()


@asynccontextmanager
async def smtp_script(*lines: bytes, hangs: bool = False) -> AsyncIterator[int]:
    """Run a server that sends one of its lines per command, and then closes the connection or stops responding."""

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        for line in lines:
            writer.write(line)
            await writer.drain()
            if line.startswith(b"354"):
                await reader.readuntil(b"\r\n.\r\n")
            elif not await reader.readline():
                return
        if hangs:
            await reader.read()

    async with listening(talk) as port:
        yield port


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for one name."""

    path: Path

    @classmethod
    def of(cls, name: str, directory: Path) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        start = datetime.now(UTC) - timedelta(hours=1)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        path = directory / f"{name}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cls(path)

    def of_server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path)
        return context

    def trusted(self) -> ssl.SSLContext:
        """The TLS context of a client that trusts only this certificate."""
        return ssl.create_default_context(cadata=self.path.read_text().partition("-----BEGIN PRIVATE")[0])
