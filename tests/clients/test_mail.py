"""Mail against a real SMTP server, and against servers that mean harm."""

from __future__ import annotations

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from bloxserver.clients.mail import GOODBYE_SECONDS, Mailer, MailError, MailServer, compose, mailer_of, read_mailbox
from bloxserver.settings import Settings
from tests.clients.hostile import NAMES, PUBLIC
from tests.smtp_server import Certificate, SmtpServer, running_smtp_server

LOOPBACK = ip_network("127.0.0.1/32")
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
INJECTIONS = ["a\r\nBcc: b@evil.test", "a\nBcc: b@evil.test", "a\rb", "a\0b", "a\x85b", "a\u2028b", "\ud800"]


def mail(**changes: Any) -> EmailMessage:
    given: dict[str, Any] = {"to": ["ada@example.com"], "subject": "Hello", "text": "Hi", "sender": "me@example.org"}
    return compose(key="key-1", moment=MOMENT, **given | changes)


def plain(server: SmtpServer, host: str = "127.0.0.1", **changes: Any) -> MailServer:
    return MailServer(host, server.port, "none", **changes)


async def failure(mailer: Mailer, message: EmailMessage | None = None, **options: Any) -> MailError:
    with pytest.raises(MailError) as caught:
        await mailer.send(message or mail(), **options)
    assert "secret" not in caught.value.message
    return caught.value


@pytest.fixture
def mailer() -> Mailer:
    """Without a server of its own; may reach 127.0.0.1, on any port."""
    return Mailer(None, None, [LOOPBACK])


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    async with running_smtp_server() as server:
        yield server


class Network:
    """The network as the event loop sees it: names from `NAMES`, and a record of every address dialled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.dialled: list[tuple[str, int]] = []
        self.questions: list[str] = []
        self._connect = loop.sock_connect
        monkeypatch.setattr(loop, "getaddrinfo", self._getaddrinfo)
        monkeypatch.setattr(loop, "sock_connect", self._sock_connect)

    async def _getaddrinfo(self, host: str, port: int, **options: Any) -> list[Any]:
        self.questions.append(host)
        if host in NAMES:
            answers = NAMES[host][min(self.questions.count(host), len(NAMES[host])) - 1]
            return [(socket.AF_UNSPEC, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    async def _sock_connect(self, sock: socket.socket, address: tuple[str, int]) -> None:
        self.dialled.append(address)
        if address[0] != "127.0.0.1":
            raise ConnectionRefusedError
        await self._connect(sock, address)


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    # Undone here, not by pytest: the loop must be itself again when its fixtures end.
    with monkeypatch.context() as patch:
        yield Network(patch)


class TestMail:
    """What arrives."""

    async def test_is_what_was_composed(self, mailer: Mailer, server: SmtpServer) -> None:
        message = mail(
            to=["ada@example.com", "Grace Hopper <grace@example.com>"],
            cc=["Jörg <joerg@example.com>"],
            reply_to="answers@example.org",
            sender="Blöx <me@example.org>",
            subject="Grüße 日 " + "x" * 300,
            text="Hällo\n.\nend",
            html="<p>Hällo</p>",
        )
        accepted = await mailer.send(message, plain(server))
        [received] = server.received
        assert accepted == received.recipients == ["ada@example.com", "grace@example.com", "joerg@example.com"]
        assert received.sender == "me@example.org"
        assert {name: received.message[name] for name in ("From", "To", "Cc", "Reply-To", "Subject", "Date")} == {
            "From": "Blöx <me@example.org>",
            "To": "ada@example.com, Grace Hopper <grace@example.com>",
            "Cc": "Jörg <joerg@example.com>",
            "Reply-To": "answers@example.org",
            "Subject": "Grüße 日 " + "x" * 300,
            "Date": "Fri, 02 Jan 2026 03:04:05 +0000",
        }
        text, html = received.message.iter_parts()
        assert isinstance(text, EmailMessage)
        assert isinstance(html, EmailMessage)
        assert (lines_of(text), lines_of(html)) == (["Hällo", ".", "end"], ["<p>Hällo</p>"])
        assert html.get_content_type() == "text/html"

    @pytest.mark.parametrize(("member", "kind"), [("text", "text/plain"), ("html", "text/html")])
    async def test_may_have_one_body(self, mailer: Mailer, server: SmtpServer, member: str, kind: str) -> None:
        await mailer.send(mail(**{"text": None, member: "only"}), plain(server))
        [received] = server.received
        assert (received.message.get_content_type(), lines_of(received.message)) == (kind, ["only"])

    async def test_bears_the_same_id_for_the_same_key(self, mailer: Mailer, server: SmtpServer) -> None:
        for message in (mail(), mail(subject="other"), compose_with_key("key-2")):
            await mailer.send(message, plain(server))
        first, second, other = (received.message["Message-ID"] for received in server.received)
        assert first == second != other
        assert first.endswith("@example.org>")
        assert "key" not in first

    async def test_gets_what_it_lacks_and_hides_bcc(self, server: SmtpServer) -> None:
        message = EmailMessage()
        message["To"] = "ada@example.com"
        message["Bcc"] = "grace@example.com, ada@example.com"
        message.set_content("Hi")
        before = bytes(message)
        mailer = Mailer(plain(server), "BloxServer <blox@example.org>")
        assert await mailer.send(message) == ["ada@example.com", "grace@example.com"]
        [received] = server.received
        assert (received.sender, received.client) == ("blox@example.org", "example.org")
        assert received.message["From"] == "BloxServer <blox@example.org>"
        assert received.message["Message-ID"].endswith("@example.org>")
        assert received.message["Date"].datetime.tzinfo is not None
        assert b"grace" not in received.content
        assert bytes(message) == before

    async def test_is_refused_for_some_and_accepted_for_others(self, mailer: Mailer, server: SmtpServer) -> None:
        server.refusals = {"no@example.com": "550 unknown"}
        message = mail(to=["no@example.com", "ada@example.com"])
        assert await mailer.send(message, plain(server)) == ["ada@example.com"]
        assert server.received[0].recipients == ["ada@example.com"]


def lines_of(part: EmailMessage) -> list[str]:
    content: str = part.get_content()
    return content.splitlines()


def compose_with_key(key: str) -> EmailMessage:
    return compose(key=key, moment=MOMENT, sender="me@example.org", to=["ada@example.com"], subject="s", text="t")


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "spelled"),
        [
            ("ada@example.com", "ada@example.com"),
            (" ada@example.com ", "ada@example.com"),
            ("<ada@example.com>", "ada@example.com"),
            ("Ada <ada@example.com>", "Ada <ada@example.com>"),
            ('"Lovelace, Ada" <ada@example.com>', '"Lovelace, Ada" <ada@example.com>'),
            ("Lovelace, Ada <ada@example.com>", '"Lovelace, Ada" <ada@example.com>'),
            ("a.b+tag@sub.example.com", "a.b+tag@sub.example.com"),
            ("root@localhost", "root@localhost"),
            ("ada@müller.example", "ada@xn--mller-kva.example"),
        ],
    )
    def test_are_read(self, text: str, spelled: str) -> None:
        assert str(read_mailbox(text)) == spelled

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "ada",
            "@example.com",
            "ada@",
            "ada@@example.com",
            "ada@example..com",
            "ada@-example.com",
            "ada@example.com, grace@example.com",
            "ada@example.com grace@example.com",
            "Ada <ada@example.com> SIZE=1",
            "Ada <ada@example.com",
            "<<ada@example.com>>",
            '"a b"@example.com',
            "a b@example.com",
            ".ada@example.com",
            "ädä@example.com",
            "ada@[127.0.0.1]",
            "{{ payload.email }}",
            "a" * 65 + "@example.com",
            "ada@" + "a" * 64 + ".com",
            "a" * 400 + "@example.com",
            *(f"{injection} <ada@example.com>" for injection in INJECTIONS),
            *(f"ada@example.com{injection}" for injection in INJECTIONS),
        ],
        ids=ascii,
    )
    def test_that_are_none_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="an address must be like"):
            read_mailbox(text)

    @pytest.mark.parametrize("injection", INJECTIONS, ids=ascii)
    @pytest.mark.parametrize("member", ["sender", "to", "cc", "reply_to", "subject"])
    def test_and_subjects_inject_no_header(self, member: str, injection: str) -> None:
        spelled = injection if member == "subject" else f"{injection} <ada@example.com>"
        with pytest.raises(ValueError, match="must be"):
            mail(**{member: [spelled] if member in ("to", "cc") else spelled})

    @pytest.mark.parametrize("body", ["a\0b", "\ud800"], ids=ascii)
    @pytest.mark.parametrize("member", ["text", "html"])
    def test_bodies_that_no_mail_can_carry_are_refused(self, member: str, body: str) -> None:
        with pytest.raises(ValueError, match="NUL"):
            mail(**{member: body})

    @pytest.mark.parametrize("text", ["nobody", "ada@exa mple.com", "ada@[::1]"])
    async def test_of_a_ready_mail_are_checked_as_well(self, mailer: Mailer, server: SmtpServer, text: str) -> None:
        message = EmailMessage()
        message["From"] = "me@example.org"
        message["To"] = text
        error = await failure(mailer, message, server=plain(server))
        assert (error.code, error.retryable, server.sessions) == ("invalid_address", False, 0)

    async def test_of_nobody_are_an_error(self, mailer: Mailer, server: SmtpServer) -> None:
        message = EmailMessage()
        message["From"] = "me@example.org"
        assert (await failure(mailer, message, server=plain(server))).code == "invalid_address"


class TestRefusals:
    @pytest.mark.parametrize(
        ("refusals", "code", "told", "retryable"),
        [
            ({"DATA": "550 spam"}, "mail_refused", "127.0.0.1 answered 550", False),
            ({"DATA": "451 later"}, "mail_refused", "127.0.0.1 answered 451", True),
            (
                {"ada@example.com": "550 unknown"},
                "recipients_refused",
                "127.0.0.1 refused all recipients (550)",
                False,
            ),
            (
                {"ada@example.com": "450 greylisted"},
                "recipients_refused",
                "127.0.0.1 refused all recipients (450)",
                True,
            ),
        ],
        ids=str,
    )
    async def test_say_host_and_code_and_whether_to_try_again(
        self, mailer: Mailer, server: SmtpServer, refusals: dict[str, str], code: str, told: str, retryable: bool
    ) -> None:
        server.refusals = refusals
        error = await failure(mailer, server=plain(server))
        assert (error.code, error.message, error.retryable) == (code, told, retryable)
        assert server.received == []

    async def test_without_a_server_or_a_sender_say_what_is_missing(self, server: SmtpServer) -> None:
        error = await failure(Mailer(None, None))
        assert (error.code, error.retryable) == ("mail_not_configured", False)
        message = mail()
        del message["From"]
        error = await failure(Mailer(plain(server), None), message)
        assert (error.code, error.message) == ("mail_not_configured", "there is no sender: SMTP_FROM is not set")


class TestLogin:
    @pytest.fixture
    async def server(self) -> AsyncIterator[SmtpServer]:
        async with running_smtp_server(users={"ada": "secret é"}) as server:
            yield server

    async def test_is_by_name_and_password(self, mailer: Mailer, server: SmtpServer) -> None:
        await mailer.send(mail(), plain(server, username="ada", password="secret é"))
        assert [received.user for received in server.received] == ["ada"]

    @pytest.mark.parametrize("password", ["secret", None, "\r\nQUIT", "x" * 600])
    async def test_with_another_password_fails_for_good(
        self, mailer: Mailer, server: SmtpServer, password: str | None
    ) -> None:
        error = await failure(mailer, server=plain(server, username="ada", password=password))
        assert (error.code, error.retryable) == ("authentication_failed", False)
        assert error.message.startswith("127.0.0.1 refused user name and password (5")

    async def test_that_is_missing_is_told(self, mailer: Mailer, server: SmtpServer) -> None:
        error = await failure(mailer, server=plain(server))
        assert (error.code, error.message, error.retryable) == ("mail_refused", "127.0.0.1 answered 530", False)

    async def test_at_a_server_without_any_fails_for_good(self, mailer: Mailer) -> None:
        async with smtp_script(b"220 hi\r\n", b"250 mail.test\r\n") as port:
            server = MailServer("127.0.0.1", port, "none", username="ada", password="secret")
            error = await failure(mailer, server=server)
        assert (error.code, error.retryable) == ("authentication_failed", False)

    def test_is_not_shown(self) -> None:
        assert "secret" not in repr(MailServer("h", 1, username="ada", password="secret"))


class TestEncryption:
    """`good.test` and `bad.test` are 127.0.0.1 here; the certificate is for the first."""

    @pytest.fixture(autouse=True)
    def names(self, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(NAMES, "good.test", [["127.0.0.1"]])
        monkeypatch.setitem(NAMES, "bad.test", [["127.0.0.1"]])

    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Certificate:
        return Certificate.of("good.test", tmp_path)

    @pytest.fixture
    async def server(self, certificate: Certificate, security: str) -> AsyncIterator[SmtpServer]:
        users = {"ada": "secret"}
        async with running_smtp_server(users=users, **{security: certificate.of_server()}) as server:
            yield server

    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_is_with_whom_it_should_be(
        self, server: SmtpServer, certificate: Certificate, security: Literal["starttls", "tls"]
    ) -> None:
        mailer = Mailer(None, None, [LOOPBACK], tls=certificate.trusted())
        await mailer.send(mail(), MailServer("good.test", server.port, security, "ada", "secret"))
        [received] = server.received
        assert (received.encrypted, received.user) == (True, "ada")

    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_with_somebody_else_is_refused_before_the_password_is_told(
        self, server: SmtpServer, certificate: Certificate, security: Literal["starttls", "tls"]
    ) -> None:
        trusting = Mailer(None, None, [LOOPBACK], tls=certificate.trusted())
        for mailer, host in ((trusting, "bad.test"), (Mailer(None, None, [LOOPBACK]), "good.test")):
            error = await failure(mailer, server=MailServer(host, server.port, security, "ada", "secret"))
            assert (error.code, error.retryable) == ("tls_failed", False)
            assert error.message == f"no TLS connection to {host} can be trusted"
        assert server.received == []

    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_of_the_installation_s_server_is_no_laxer(
        self, server: SmtpServer, security: Literal["starttls", "tls"]
    ) -> None:
        default = MailServer("good.test", server.port, security, "ada", "secret")
        assert (await failure(Mailer(default, None))).code == "tls_failed"

    async def test_that_is_not_offered_is_not_done_without(self, mailer: Mailer) -> None:
        async with smtp_script(b"220 hi\r\n", b"250 mail.test\r\n") as port:
            server = MailServer("good.test", port, "starttls", "ada", "secret")
            error = await failure(mailer, server=server)
        assert (error.code, error.message) == ("tls_failed", "good.test does not offer STARTTLS")

    async def test_with_a_server_that_speaks_none_fails(self, mailer: Mailer) -> None:
        async with smtp_script(b"220 hi\r\n") as port:
            error = await failure(mailer, server=MailServer("good.test", port, "tls"))
        assert error.code == "tls_failed"


class TestGuard:
    @pytest.mark.parametrize(
        "host",
        [
            *("127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "0", "2130706433", "::1", "::ffff:127.0.0.1"),
            *("private.test", "mixed.test", "mixedlast.test", "nat64.test", "zone.test", "rebind.test"),
        ],
    )
    async def test_no_inside_server_is_dialled(self, network: Network, host: str) -> None:
        error = await failure(Mailer(None, None), server=MailServer(host, 25, "none"))
        assert (error.code, error.retryable, network.dialled) == ("address_refused", False, [])

    @pytest.mark.parametrize("port", [22, 80, 443, 6379, 1025])
    async def test_no_other_port_is_dialled(self, network: Network, port: int) -> None:
        error = await failure(Mailer(None, None), server=MailServer("public.test", port, "none"))
        assert (error.code, error.retryable, network.dialled) == ("port_refused", False, [])

    @pytest.mark.parametrize("port", [25, 465, 587, 2525])
    async def test_public_servers_are_dialled_where_they_were_checked(self, network: Network, port: int) -> None:
        error = await failure(Mailer(None, None), server=MailServer("rebound.test", port, "none"))
        assert (error.code, error.retryable) == ("connection_failed", True)
        assert (network.questions, network.dialled) == (["rebound.test"], [(PUBLIC, port)])

    async def test_an_allowed_server_is_reached_on_any_port(
        self, network: Network, mailer: Mailer, server: SmtpServer
    ) -> None:
        await mailer.send(mail(), plain(server, host="server.test"))
        assert network.dialled == [("127.0.0.1", server.port)]

    async def test_the_installation_s_server_may_be_anywhere(self, network: Network, server: SmtpServer) -> None:
        assert await Mailer(plain(server, host="localhost"), None).send(mail()) == ["ada@example.com"]

    async def test_unknown_names_may_be_known_later(self, network: Network, mailer: Mailer) -> None:
        error = await failure(mailer, server=MailServer("nobody.test", 25))
        assert (error.code, error.retryable) == ("name_not_resolved", True)


class TestServersThatMeanHarm:
    @pytest.mark.parametrize(
        ("lines", "code", "retryable"),
        [
            ([], "connection_failed", True),
            ([b"220 hi\r\n"], "connection_failed", True),
            ([b"421 busy\r\n"], "mail_refused", True),
            ([b"554 no\r\n"], "mail_refused", False),
            ([b"junk\r\n"], "invalid_response", True),
            ([b"\xff\xfe\r\n"], "invalid_response", True),
            ([b"220 " + b"x" * 100_000 + b"\r\n"], "invalid_response", True),
            ([b"220-x\r\n" * 20_000], "invalid_response", True),
            ([b"220 hi\r\n", b"500 what\r\n", b"500 what\r\n"], "mail_refused", False),
            ([b"220 hi\r\n", b"250 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", b"250 what\r\n"], "mail_refused", False),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    async def test_are_errors(self, mailer: Mailer, lines: list[bytes], code: str, retryable: bool) -> None:
        async with smtp_script(*lines) as port:
            error = await failure(mailer, server=MailServer("127.0.0.1", port, "none"))
        assert (error.code, error.retryable) == (code, retryable)

    @pytest.mark.parametrize("sent", [b"", b"220-hi\r\n", b"2"], ids=ascii)
    async def test_take_no_longer_than_the_deadline(self, mailer: Mailer, sent: bytes) -> None:
        async def drip(reader: StreamReader, writer: StreamWriter) -> None:
            while not reader.at_eof():
                writer.write(sent)
                await writer.drain()
                await asyncio.sleep(0.01)

        async with raw_server(drip) as port:
            error = await failure(mailer, server=MailServer("127.0.0.1", port, "none"), timeout_seconds=0.2)
        assert (error.code, error.retryable) in {("timeout", True), ("invalid_response", True)}

    async def test_cannot_take_back_what_they_accepted(self, mailer: Mailer) -> None:
        lines = [b"220 hi\r\n", *[b"250 ok\r\n"] * 3, b"354 go\r\n", b"250 taken\r\n"]
        deadline = GOODBYE_SECONDS - 0.5
        async with smtp_script(*lines, hangs=True) as port:
            sent = await mailer.send(mail(), MailServer("127.0.0.1", port, "none"), timeout_seconds=deadline)
        assert sent == ["ada@example.com"]

    async def test_are_not_waited_for_by_a_sender_that_is_cancelled(self, mailer: Mailer) -> None:
        arrived, gone = asyncio.Event(), asyncio.Event()

        async def wait(reader: StreamReader, writer: StreamWriter) -> None:
            arrived.set()
            await reader.read()
            gone.set()

        async with raw_server(wait) as port, asyncio.timeout(10):
            sending = asyncio.create_task(mailer.send(mail(), MailServer("127.0.0.1", port, "none")))
            await arrived.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await gone.wait()

    async def test_a_closed_port_may_open_again(self, mailer: Mailer) -> None:
        error = await failure(mailer, server=MailServer("127.0.0.1", 1))
        assert (error.code, error.message) == ("connection_failed", "the connection to 127.0.0.1 failed")
        assert error.retryable


class TestSettings:
    def test_without_a_host_there_is_no_server(self) -> None:
        mailer = mailer_of(Settings())
        assert (mailer.default, mailer.sender) == (None, None)

    def test_make_the_installation_s_server(self) -> None:
        settings = Settings(
            smtp_host="mail.example.org",
            smtp_port=465,
            smtp_security="tls",
            smtp_username="ada",
            smtp_password=SecretStr("secret"),
            smtp_from="BloxServer <blox@example.org>",
        )
        mailer = mailer_of(settings)
        assert mailer.default == MailServer("mail.example.org", 465, "tls", "ada", "secret")
        assert mailer.sender == "BloxServer <blox@example.org>"

    async def test_allow_servers_inside(self, server: SmtpServer) -> None:
        inside = mailer_of(Settings(ssrf_allow_cidrs=(LOOPBACK,)))
        assert await inside.send(mail(), plain(server)) == ["ada@example.com"]


Conversation = Callable[[StreamReader, StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(talk: Conversation) -> AsyncIterator[int]:
    """The port of a server that says what it likes."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: StreamReader, writer: StreamWriter) -> None:
        async def serve() -> None:
            try:
                await talk(reader, writer)
            except ConnectionError:
                pass
            finally:
                writer.close()

        task = asyncio.create_task(serve())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await asyncio.gather(*tasks)
        await listener.wait_closed()


@asynccontextmanager
async def smtp_script(*lines: bytes, hangs: bool = False) -> AsyncIterator[int]:
    """A server that says its lines, one for each command that it gets, and hangs up, or just says no more."""

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

    async with raw_server(talk) as port:
        yield port
