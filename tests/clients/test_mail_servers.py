"""Mail servers: allowed addresses, authentication, encryption, and hostile servers."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from bloxserver.clients.mail import QUIT_TIMEOUT_SECONDS, Mailer, MailServer
from tests.clients.hostile import NAMES, PUBLIC
from tests.clients.mailing import LOOPBACK, failure, mail, plain
from tests.clients.network import Network
from tests.listening import listening
from tests.smtp_server import Certificate, SmtpServer, running_smtp_server, smtp_script


@pytest.fixture
def mailer() -> Mailer:
    """A mailer without a default server that allows 127.0.0.1 on any port."""
    return Mailer(None, None, [LOOPBACK])


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    async with running_smtp_server() as server:
        yield server


class TestLogin:
    @pytest.fixture
    async def server(self) -> AsyncIterator[SmtpServer]:
        async with running_smtp_server(users={"ada": "secret é"}) as server:
            yield server

    async def test_login_uses_user_name_and_password(self, mailer: Mailer, server: SmtpServer) -> None:
        await mailer.send(mail(), plain(server, username="ada", password="secret é"))
        assert [received.user for received in server.received] == ["ada"]

    @pytest.mark.parametrize("password", ["secret", None, "\r\nQUIT", "x" * 600])
    async def test_wrong_password_is_not_retryable(
        self, mailer: Mailer, server: SmtpServer, password: str | None
    ) -> None:
        error = await failure(mailer, server=plain(server, username="ada", password=password))
        assert (error.code, error.retryable) == ("authentication_failed", False)
        assert error.message.startswith("127.0.0.1 rejected the user name or the password (5")

    async def test_missing_login_is_reported(self, mailer: Mailer, server: SmtpServer) -> None:
        error = await failure(mailer, server=plain(server))
        assert (error.code, error.message, error.retryable) == ("mail_refused", "127.0.0.1 answered 530", False)

    async def test_server_without_authentication_is_not_retryable(self, mailer: Mailer) -> None:
        async with smtp_script(b"220 hi\r\n", b"250 mail.test\r\n") as port:
            server = MailServer("127.0.0.1", port, "none", username="ada", password="secret")
            error = await failure(mailer, server=server)
        assert (error.code, error.retryable) == ("authentication_failed", False)

    def test_password_is_not_in_the_representation(self) -> None:
        assert "secret" not in repr(MailServer("h", 1, username="ada", password="secret"))


class TestEncryption:
    """Resolve `good.test` and `bad.test` to 127.0.0.1. The certificate is for `good.test`."""

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
    async def test_certificate_of_the_host_is_accepted(
        self, server: SmtpServer, certificate: Certificate, security: Literal["starttls", "tls"]
    ) -> None:
        mailer = Mailer(None, None, [LOOPBACK], tls=certificate.trusted())
        await mailer.send(mail(), MailServer("good.test", server.port, security, "ada", "secret"))
        [received] = server.received
        assert (received.encrypted, received.user) == (True, "ada")

    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_wrong_certificate_is_rejected_before_the_login(
        self, server: SmtpServer, certificate: Certificate, security: Literal["starttls", "tls"]
    ) -> None:
        trusting = Mailer(None, None, [LOOPBACK], tls=certificate.trusted())
        for mailer, host in ((trusting, "bad.test"), (Mailer(None, None, [LOOPBACK]), "good.test")):
            error = await failure(mailer, server=MailServer(host, server.port, security, "ada", "secret"))
            assert (error.code, error.retryable) == ("tls_failed", False)
            assert error.message == f"{host} has no trusted certificate"
        assert server.received == []

    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_default_server_needs_a_valid_certificate(
        self, server: SmtpServer, security: Literal["starttls", "tls"]
    ) -> None:
        default = MailServer("good.test", server.port, security, "ada", "secret")
        assert (await failure(Mailer(default, "me@example.org"))).code == "tls_failed"

    async def test_missing_starttls_is_an_error(self, mailer: Mailer) -> None:
        async with smtp_script(b"220 hi\r\n", b"250 mail.test\r\n") as port:
            server = MailServer("good.test", port, "starttls", "ada", "secret")
            error = await failure(mailer, server=server)
        assert (error.code, error.message) == ("tls_failed", "good.test does not offer STARTTLS")

    async def test_server_without_tls_is_an_error(self, mailer: Mailer) -> None:
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
    async def test_private_server_is_not_connected_to(self, network: Network, host: str) -> None:
        error = await failure(Mailer(None, None), server=MailServer(host, 25, "none"))
        assert (error.code, error.retryable, network.dialled) == ("address_refused", False, [])

    @pytest.mark.parametrize("port", [22, 80, 443, 6379, 1025])
    async def test_other_ports_are_not_connected_to(self, network: Network, port: int) -> None:
        error = await failure(Mailer(None, None), server=MailServer("public.test", port, "none"))
        assert (error.code, error.retryable, network.dialled) == ("port_refused", False, [])

    @pytest.mark.parametrize("port", [25, 465, 587, 2525])
    async def test_checked_address_of_a_public_server_is_used(self, network: Network, port: int) -> None:
        error = await failure(Mailer(None, None), server=MailServer("rebound.test", port, "none"))
        assert (error.code, error.retryable) == ("connection_failed", True)
        assert (network.questions, network.dialled, network.ports) == (["rebound.test"], [PUBLIC], [port])

    async def test_allowed_server_is_reachable_on_any_port(
        self, network: Network, mailer: Mailer, server: SmtpServer
    ) -> None:
        await mailer.send(mail(), plain(server, host="server.test"))
        assert (network.dialled, network.ports) == (["127.0.0.1"], [server.port])

    async def test_default_server_is_not_restricted(self, network: Network, server: SmtpServer) -> None:
        assert await Mailer(plain(server, host="localhost"), "me@example.org").send(mail()) == ["ada@example.com"]

    async def test_unresolved_name_is_retryable(self, network: Network, mailer: Mailer) -> None:
        error = await failure(mailer, server=MailServer("nobody.test", 25))
        assert (error.code, error.retryable) == ("name_not_resolved", True)


class TestHostileServers:
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
    async def test_hostile_responses_are_errors(
        self, mailer: Mailer, lines: list[bytes], code: str, retryable: bool
    ) -> None:
        async with smtp_script(*lines) as port:
            error = await failure(mailer, server=MailServer("127.0.0.1", port, "none"))
        assert (error.code, error.retryable) == (code, retryable)

    @pytest.mark.parametrize(
        ("last", "is_uncertain"),
        [
            ([], False),
            ([b"250 ok\r\n"] * 2, False),
            ([b"250 ok\r\n"] * 3, True),
            ([*[b"250 ok\r\n"] * 3, b"451 later\r\n"], False),
            ([*[b"250 ok\r\n"] * 3, b"354 go\r\n"], True),
            ([*[b"250 ok\r\n"] * 3, b"354 go\r\n", b"451 later\r\n"], False),
            ([*[b"250 ok\r\n"] * 3, b"354 go\r\n", b"554 no\r\n"], False),
            ([*[b"250 ok\r\n"] * 3, b"354 go\r\n", b"???\r\n"], True),
            ([b"250 ok\r\n", b"250 ok\r\n", b"550 no\r\n"], False),
        ],
    )
    async def test_outcome_is_uncertain_without_an_answer_to_the_content(
        self, mailer: Mailer, last: list[bytes], is_uncertain: bool
    ) -> None:
        async with smtp_script(b"220 hi\r\n", *last) as port:
            error = await failure(mailer, server=MailServer("127.0.0.1", port, "none"))
        assert error.is_uncertain == is_uncertain

    @pytest.mark.parametrize("sent", [b"", b"220-hi\r\n", b"2"], ids=ascii)
    async def test_slow_server_times_out(self, mailer: Mailer, sent: bytes) -> None:
        async def drip(reader: StreamReader, writer: StreamWriter) -> None:
            while not reader.at_eof():
                writer.write(sent)
                await writer.drain()
                await asyncio.sleep(0.01)

        async with listening(drip) as port:
            error = await failure(mailer, server=MailServer("127.0.0.1", port, "none"), timeout_seconds=0.2)
        assert (error.code, error.retryable) in {("timeout", True), ("invalid_response", True)}

    async def test_error_after_acceptance_is_ignored(self, mailer: Mailer) -> None:
        lines = [b"220 hi\r\n", *[b"250 ok\r\n"] * 3, b"354 go\r\n", b"250 taken\r\n"]
        deadline = QUIT_TIMEOUT_SECONDS - 0.5
        async with smtp_script(*lines, hangs=True) as port:
            sent = await mailer.send(mail(), MailServer("127.0.0.1", port, "none"), timeout_seconds=deadline)
        assert sent == ["ada@example.com"]

    async def test_cancellation_does_not_wait_for_the_server(self, mailer: Mailer) -> None:
        arrived, gone = asyncio.Event(), asyncio.Event()

        async def wait(reader: StreamReader, writer: StreamWriter) -> None:
            arrived.set()
            await reader.read()
            gone.set()

        async with listening(wait) as port, asyncio.timeout(10):
            sending = asyncio.create_task(mailer.send(mail(), MailServer("127.0.0.1", port, "none")))
            await arrived.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await gone.wait()

    async def test_refused_connection_is_retryable(self, mailer: Mailer) -> None:
        error = await failure(mailer, server=MailServer("127.0.0.1", 1))
        assert (error.code, error.message) == ("connection_failed", "the connection to 127.0.0.1 failed")
        assert error.retryable
