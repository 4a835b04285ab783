"""Composition of emails, and delivery to a real SMTP server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.message import EmailMessage

import pytest
from pydantic import SecretStr

from bloxserver.clients.mail import Mailer, MailError, MailServer, create_mailer
from bloxserver.clients.mail_headers import Senders, read_mailbox
from bloxserver.clients.shares import UNLIMITED
from bloxserver.settings import Settings
from tests.clients.mailing import LOOPBACK, failure, mail, plain
from tests.smtp_server import SmtpServer, running_smtp_server

INJECTIONS = ["a\r\nBcc: b@evil.test", "a\nBcc: b@evil.test", "a\rb", "a\0b", "a\x85b", "a\u2028b", "\ud800"]


@pytest.fixture
def mailer() -> Mailer:
    """A mailer without a default server that allows 127.0.0.1 on any port."""
    return Mailer(None, None, [LOOPBACK])


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    async with running_smtp_server() as server:
        yield server


class TestMail:
    """Return the delivered email."""

    async def test_composed_email_is_delivered(self, mailer: Mailer, server: SmtpServer) -> None:
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
    async def test_email_can_have_a_single_body(
        self, mailer: Mailer, server: SmtpServer, member: str, kind: str
    ) -> None:
        await mailer.send(mail(**{"text": None, member: "only"}), plain(server))
        [received] = server.received
        assert (received.message.get_content_type(), lines_of(received.message)) == (kind, ["only"])

    async def test_same_key_has_the_same_message_id(self, mailer: Mailer, server: SmtpServer) -> None:
        for message in (mail(), mail(subject="other"), mail(key="key-2")):
            await mailer.send(message, plain(server))
        first, second, other = (received.message["Message-ID"] for received in server.received)
        assert first == second != other
        assert first.endswith("@example.org>")
        assert "key" not in first

    async def test_missing_headers_are_added_and_bcc_is_removed(self, server: SmtpServer) -> None:
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

    async def test_some_recipients_can_be_rejected(self, mailer: Mailer, server: SmtpServer) -> None:
        server.refusals = {"no@example.com": "550 unknown"}
        message = mail(to=["no@example.com", "ada@example.com"])
        assert await mailer.send(message, plain(server)) == ["ada@example.com"]
        assert server.received[0].recipients == ["ada@example.com"]


def lines_of(part: EmailMessage) -> list[str]:
    content: str = part.get_content()
    return content.splitlines()


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
    def test_address_is_parsed(self, text: str, spelled: str) -> None:
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
    def test_invalid_address_is_rejected(self, text: str) -> None:
        with pytest.raises(ValueError, match="an address must be like"):
            read_mailbox(text)

    @pytest.mark.parametrize("injection", INJECTIONS, ids=ascii)
    @pytest.mark.parametrize("member", ["sender", "to", "cc", "reply_to", "subject"])
    def test_headers_cannot_be_injected(self, member: str, injection: str) -> None:
        spelled = injection if member == "subject" else f"{injection} <ada@example.com>"
        with pytest.raises(ValueError, match="must be"):
            mail(**{member: [spelled] if member in ("to", "cc") else spelled})

    @pytest.mark.parametrize("body", ["a\0b", "\ud800"], ids=ascii)
    @pytest.mark.parametrize("member", ["text", "html"])
    def test_body_with_nul_or_lone_surrogates_is_rejected(self, member: str, body: str) -> None:
        with pytest.raises(ValueError, match="NUL"):
            mail(**{member: body})

    @pytest.mark.parametrize("text", ["nobody", "ada@exa mple.com", "ada@[::1]"])
    async def test_addresses_of_a_composed_email_are_checked(
        self, mailer: Mailer, server: SmtpServer, text: str
    ) -> None:
        message = EmailMessage()
        message["From"] = "me@example.org"
        message["To"] = text
        error = await failure(mailer, message, server=plain(server))
        assert (error.code, error.retryable, server.sessions) == ("invalid_address", False, 0)

    async def test_email_without_recipients_is_an_error(self, mailer: Mailer, server: SmtpServer) -> None:
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
                "127.0.0.1 rejected all recipients (550)",
                False,
            ),
            (
                {"ada@example.com": "450 greylisted"},
                "recipients_refused",
                "127.0.0.1 rejected all recipients (450)",
                True,
            ),
        ],
        ids=str,
    )
    async def test_error_has_host_code_and_retryability(
        self, mailer: Mailer, server: SmtpServer, refusals: dict[str, str], code: str, told: str, retryable: bool
    ) -> None:
        server.refusals = refusals
        error = await failure(mailer, server=plain(server))
        assert (error.code, error.message, error.retryable) == (code, told, retryable)
        assert server.received == []

    async def test_missing_server_or_sender_is_named(self, server: SmtpServer) -> None:
        error = await failure(Mailer(None, None))
        assert (error.code, error.retryable) == ("mail_not_configured", False)
        message = mail()
        del message["From"]
        error = await failure(Mailer(plain(server), None), message)
        assert (error.code, error.message) == ("mail_not_configured", "no sender is configured: SMTP_FROM is not set")


class TestCounts:
    async def test_recipients_are_counted_before_the_email_is_submitted(self, server: SmtpServer) -> None:
        counted: list[int] = []

        async def count(recipients: int) -> None:
            assert server.sessions == 0
            counted.append(recipients)

        mailer = Mailer(plain(server), "me@example.org", [LOOPBACK]).limited_to(UNLIMITED, count)
        await mailer.send(mail(to=["ada@example.com", "grace@example.com"], cc=["ada@example.com"]))
        assert (counted, len(server.received)) == ([2], 1)
        await mailer.send(mail(), plain(server))
        assert (counted, len(server.received)) == ([2], 2), "the user's own server is not counted"

    async def test_email_over_the_limit_is_not_submitted(self, server: SmtpServer) -> None:
        async def refuse(recipients: int) -> None:
            raise MailError("emails_per_day_limit_reached", "no more", retryable=True)

        mailer = Mailer(plain(server), "me@example.org").limited_to(UNLIMITED, refuse)
        assert (await failure(mailer)).code == "emails_per_day_limit_reached"
        assert server.sessions == 0


class TestSettings:
    @pytest.mark.parametrize(
        ("senders", "sender", "accepted"),
        [
            ("fixed", "Blox <blox@Example.org>", True),
            ("fixed", "blox@example.org", True),
            ("fixed", "Bank <blox@example.org>", False),
            ("name", "Bank <blox@example.org>", True),
            ("name", "Blox <bank@example.org>", False),
            ("domain", "Bank <bank@Example.org>", True),
            ("domain", "a@bank.example", False),
        ],
    )
    async def test_default_server_sends_only_as_the_operator_allows(
        self, server: SmtpServer, senders: Senders, sender: str, accepted: bool
    ) -> None:
        mailer = Mailer(plain(server), "Blox <blox@example.org>", [LOOPBACK], senders=senders)
        if accepted:
            assert await mailer.send(mail(sender=sender)) == ["ada@example.com"]
        else:
            error = await failure(mailer, mail(sender=sender))
            assert (error.code, error.retryable, server.received) == ("sender_refused", False, [])
        assert await mailer.send(mail(sender=sender), plain(server)) == ["ada@example.com"], "another server may"

    async def test_default_server_without_a_sender_sends_nothing(self, server: SmtpServer) -> None:
        error = await failure(Mailer(plain(server), None), mail(sender="a@bank.example"))
        assert (error.code, server.received) == ("mail_not_configured", [])

    def test_no_server_is_configured_without_a_host(self) -> None:
        mailer = create_mailer(Settings())
        assert (mailer.default, mailer.sender) == (None, None)

    def test_settings_configure_the_default_server(self) -> None:
        settings = Settings(
            smtp_host="mail.example.org",
            smtp_port=465,
            smtp_security="tls",
            smtp_username="ada",
            smtp_password=SecretStr("secret"),
            smtp_from="BloxServer <blox@example.org>",
        )
        mailer = create_mailer(settings)
        assert mailer.default == MailServer("mail.example.org", 465, "tls", "ada", "secret")
        assert mailer.sender == "BloxServer <blox@example.org>"

    async def test_default_server_can_be_in_a_private_network(self, server: SmtpServer) -> None:
        inside = create_mailer(Settings(ssrf_allow_cidrs=(LOOPBACK,)))
        assert await inside.send(mail(), plain(server)) == ["ada@example.com"]
