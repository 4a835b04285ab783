"""`email.send` against a real SMTP server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks import templates
from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.email_send import block
from bloxserver.clients.mail import Mailer, MailServer
from tests.smtp_server import SmtpServer, running_smtp_server

MAIL = {"to": "ada@example.com", "subject": "Hello", "text": "Hi"}
JUNK = ["ada", "ada@example.com grace@example.com", "ada@example.com\r\nBcc: b@evil.test", "a\nb <ada@example.com>"]


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    async with running_smtp_server() as server:
        yield server


@pytest.fixture
def context(context: BlockContext, server: SmtpServer) -> BlockContext:
    """A context of an installation with a mail server."""
    default = MailServer("127.0.0.1", server.port, "none")
    return replace(context, mail=Mailer(default, "Blox <blox@example.org>", [ip_network("127.0.0.1/32")]))


async def run(context: BlockContext, **config: Any) -> Any:
    return await block.handler(block.payload.model_validate(None), block.config.model_validate(config), context)


async def failure(context: BlockContext, **config: Any) -> BlockError:
    with pytest.raises(BlockError) as caught:
        await run(context, **config)
    assert "secret" not in caught.value.message
    return caught.value


class TestMail:
    async def test_content_comes_from_the_config(self, context: BlockContext, server: SmtpServer) -> None:
        answered = await run(
            context,
            to=["Ada <ada@example.com>", "grace@example.com"],
            cc="joan@example.com",
            reply_to="answers@example.org",
            subject="Grüße",
            text="Hi",
            html="<p>Hi</p>",
            **{"from": "blox@example.org"},
        )
        [received] = server.received
        assert received.recipients == ["ada@example.com", "grace@example.com", "joan@example.com"]
        assert {name: received.message[name] for name in ("From", "To", "Cc", "Reply-To", "Subject", "Date")} == {
            "From": "blox@example.org",
            "To": "Ada <ada@example.com>, grace@example.com",
            "Cc": "joan@example.com",
            "Reply-To": "answers@example.org",
            "Subject": "Grüße",
            "Date": "Fri, 02 Jan 2026 03:04:05 +0000",
        }
        assert answered == {
            "message_id": received.message["Message-ID"],
            "accepted": received.recipients,
            "refused": [],
        }

    async def test_sender_defaults_to_the_installation(self, context: BlockContext, server: SmtpServer) -> None:
        await run(context, **MAIL)
        [received] = server.received
        assert (received.sender, received.message["From"]) == ("blox@example.org", "Blox <blox@example.org>")

    async def test_message_id_is_equal_for_every_attempt(self, context: BlockContext, server: SmtpServer) -> None:
        for attempt in (context, context, replace(context, idempotency_key="key-2")):
            await run(attempt, **MAIL)
        first, second, other = (received.message["Message-ID"] for received in server.received)
        assert first == second != other

    async def test_configured_server_is_used(self, context: BlockContext, server: SmtpServer) -> None:
        async with running_smtp_server(users={"ada": "secret"}) as other:
            named = {
                "host": "127.0.0.1",
                "port": other.port,
                "security": "none",
                "username": "ada",
                "password": "secret",
            }
            await run(context, **MAIL, server=named, **{"from": "ada@example.org"})
            assert [received.user for received in other.received] == ["ada"]
        assert server.received == []

    async def test_refused_recipients_are_in_the_answer(self, context: BlockContext, server: SmtpServer) -> None:
        server.refusals = {"no@example.com": "550 unknown"}
        answered = await run(context, **MAIL | {"to": ["No <no@example.com>", "ada@example.com"]})
        assert (answered["accepted"], answered["refused"]) == (["ada@example.com"], ["no@example.com"])

    async def test_repeated_address_gets_one_copy(self, context: BlockContext, server: SmtpServer) -> None:
        server.refusals = {"no@example.com": "550 unknown"}
        to = 'ada@example.com, "Hopper, Grace" <grace@example.com>, no@example.com,'
        answered = await run(
            context, **MAIL | {"to": to, "cc": ["ada@example.com, joan@example.com", "no@example.com"]}
        )
        [received] = server.received
        assert received.recipients == ["ada@example.com", "grace@example.com", "joan@example.com"]
        assert (answered["accepted"], answered["refused"]) == (received.recipients, ["no@example.com"])
        assert [each.display_name for each in received.message["To"].addresses] == ["", "Hopper, Grace", ""]

    @pytest.mark.parametrize("empty", [None, "", " ", ",", [], [None], ["", " "]], ids=str)
    async def test_empty_cc_adds_no_header(self, context: BlockContext, server: SmtpServer, empty: JsonValue) -> None:
        await run(context, **MAIL | {"cc": empty})
        [received] = server.received
        assert received.recipients == ["ada@example.com"]
        assert "Cc" not in received.message

    @pytest.mark.parametrize("empty", [None, "", " "])
    async def test_empty_from_and_reply_to_use_defaults(
        self, context: BlockContext, server: SmtpServer, empty: str | None
    ) -> None:
        await run(context, **MAIL | {"from": empty, "reply_to": empty})
        [received] = server.received
        assert received.sender == "blox@example.org"
        assert "Reply-To" not in received.message

    async def test_encoded_words_are_not_decoded(self, context: BlockContext, server: SmtpServer) -> None:
        word = "=?utf-8?q?hi=0D=0ABcc=3A_evil=40x.test?="
        await run(context, **MAIL | {"subject": word, "to": f"{word} <ada@example.com>", "reply_to": f"{word} <a@b.c>"})
        [received] = server.received
        assert received.recipients == ["ada@example.com"]
        assert received.message["Bcc"] is None
        assert received.message["Subject"] == word
        assert b"\nBcc" not in received.content

    async def test_placeholders_are_replaced(self, context: BlockContext, server: SmtpServer) -> None:
        payload: JsonValue = {"to": ["blox@example.org", "grace@example.com"], "n": 17, "items": [1, "é"]}
        written: dict[str, JsonValue] = {
            "to": "{{ payload.to }}",
            "from": "{{ payload.to.0 }}",
            "subject": "{{ payload.n }}",
            "text": "{{ payload.items }}",
        }
        assert set(written) <= block.templates
        block.config.model_validate(written)
        rendered = {
            name: templates.render(value, {"payload": payload}, context.budget) for name, value in written.items()
        }
        await run(context, **rendered)
        [received] = server.received
        assert (received.sender, received.recipients) == ("blox@example.org", payload["to"])  # type: ignore[call-overload, index]
        assert received.message["Subject"] == "17"
        assert received.message.get_content().strip() == '[1,"é"]'


class TestFailure:
    async def test_missing_mail_server_is_reported(self, context: BlockContext) -> None:
        for mailer in (Mailer(None, None), Mailer(None, "blox@example.org")):
            error = await failure(replace(context, mail=mailer), **MAIL)
            assert (error.code, error.retryable) == ("mail_not_configured", False)

    async def test_of_an_installation_with_an_invalid_sender_says_so(
        self, context: BlockContext, server: SmtpServer
    ) -> None:
        mailer = Mailer(MailServer("127.0.0.1", server.port, "none"), "not an address")
        error = await failure(replace(context, mail=mailer), **MAIL, **{"from": "ada@example.org"})
        assert (error.code, error.message) == ("mail_not_configured", "SMTP_FROM is not a valid address")

    @pytest.mark.parametrize(("reply", "retryable"), [("550 no", False), ("450 later", True)])
    async def test_server_errors_are_retryable_or_final(
        self, context: BlockContext, server: SmtpServer, reply: str, retryable: bool
    ) -> None:
        server.refusals = {"DATA": reply}
        error = await failure(context, **MAIL)
        assert (error.code, error.message) == ("mail_refused", f"127.0.0.1 answered {reply[:3]}")
        assert error.retryable == retryable

    async def test_wrong_password_is_not_retryable(self, context: BlockContext) -> None:
        async with running_smtp_server(users={"ada": "other"}) as other:
            named = {"host": "127.0.0.1", "port": other.port, "security": "none"}
            login = {"username": "ada", "password": "secret"}
            error = await failure(context, **MAIL, server=named | login, **{"from": "ada@example.org"})
        assert (error.code, error.retryable) == ("authentication_failed", False)

    async def test_private_server_address_is_refused(self, context: BlockContext) -> None:
        named = {"host": "10.0.0.1"}
        error = await failure(context, **MAIL, server=named, **{"from": "ada@example.org"})
        assert (error.code, error.retryable) == ("address_refused", False)

    @pytest.mark.parametrize("member", ["to", "cc", "reply_to", "from"])
    @pytest.mark.parametrize("text", ["{{ payload.email }}", *(f"{{{{ {text}" for text in JUNK)], ids=ascii)
    async def test_invalid_address_after_replacement_is_an_error(
        self, context: BlockContext, server: SmtpServer, member: str, text: str
    ) -> None:
        error = await failure(context, **MAIL | {member: text})
        assert (error.code, error.retryable, server.received) == ("invalid_mail", False, [])

    @pytest.mark.parametrize("change", [{"subject": "a\r\nBcc: b@evil.test"}, {"text": "a\0b"}, {"html": "\ud800"}])
    async def test_invalid_header_characters_are_an_error(
        self, context: BlockContext, server: SmtpServer, change: dict[str, str]
    ) -> None:
        config = block.config.model_construct(**block.config.model_validate(MAIL).model_dump() | change)
        with pytest.raises(BlockError) as caught:
            await block.handler(block.payload.model_validate(None), config, context)
        assert (caught.value.code, caught.value.retryable, server.received) == ("invalid_mail", False, [])

    @pytest.mark.parametrize(
        "change",
        [
            *({"to": text} for text in JUNK),
            *({"reply_to": text} for text in JUNK),
            {"to": []},
            {"to": None},
            {"to": ""},
            {"to": [None, " "]},
            {"to": [5]},
            {"to": ", ".join(["ada@example.com"] * 51)},
            {"bcc": "ada@example.com"},
            {"to": ["ada@example.com"] * 51},
            {"to": {"ada": 1}},
            {"cc": ["ada"]},
            {"from": "nobody"},
            {"subject": None},
            {"subject": "x" * 1001},
            {"text": None},
            {"text": "x" * 500_001},
            {"timeout_seconds": 0},
            {"server": {"host": "mail.example.com"}},
            {"server": {"host": "mail.example.com"}, "from": ""},
            {"server": {}, "from": "ada@example.com"},
            {"server": {"host": ""}, "from": "ada@example.com"},
            {"server": {"host": "h", "port": 0}, "from": "ada@example.com"},
            {"server": {"host": "h", "security": "ssl"}, "from": "ada@example.com"},
            {"sender": "ada@example.com"},
        ],
        ids=lambda change: ascii(change)[:60],
    )
    def test_invalid_email_configs_are_rejected(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            block.config.model_validate(MAIL | change)


def test_config_repr_hides_the_password() -> None:
    server = {"host": "h", "username": "ada", "password": "secret"}
    assert "secret" not in repr(block.config.model_validate(MAIL | {"server": server, "from": "ada@example.com"}))
