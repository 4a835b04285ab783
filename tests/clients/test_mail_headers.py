"""Header fields of mails: user input arrives unchanged, and never as another field."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from email import message_from_bytes
from email.header import decode_header, make_header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import getaddresses

import pytest

from bloxserver.clients.mail import Mailer
from bloxserver.clients.mail_headers import check_headers, read_mailbox, read_mailboxes
from tests.clients.mailing import LOOPBACK, failure, mail, plain
from tests.smtp_server import running_smtp_server

FIELDS = ["From", "To", "Subject", "Date", "Message-ID", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"]
ENCODED_WORDS = [
    "=?utf-8?q?hi=0D=0ABcc=3A_evil=40x.test?=",
    "=?utf-8?b?aGkNCkJjYzogZXZpbEB4LnRlc3Q=?=",
    "=?UTF-8?Q?a=0AX-Evil=3A_1?= =?utf-8?q?=0D=0A=0D=0Abody?=",
    "=?utf-8?q?plain?=",
    "=?utf-8*en?q?a=0Ab?=",
    "=?iso-8859-1?q?caf=E9?= and =?utf-8?",
    "a=?utf-8?q?=00?=b",
    '"=?utf-8?q?=0D=0A?="',
]


def parsed(message: EmailMessage) -> dict[str, str]:
    """The fields as a receiver reads them, without folding and not yet decoded."""
    received = message_from_bytes(message.as_bytes(policy=SMTP))
    return {name: re.sub(r"\r?\n", "", value) for name, value in received.items()}


def decoded(value: str) -> str:
    return str(make_header(decode_header(value)))


def mailboxes(value: str) -> list[tuple[str, str]]:
    return [(decoded(name), address) for name, address in getaddresses([value])]


def assert_lines_fit(message: EmailMessage, limit: int = 78) -> None:
    head = message.as_bytes(policy=SMTP).partition(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) <= limit


class TestText:
    @pytest.mark.parametrize("text", ENCODED_WORDS)
    def test_encoded_words_in_a_subject_are_not_decoded(self, text: str) -> None:
        message = mail(subject=text)
        fields = parsed(message)
        assert set(fields) <= set(FIELDS)
        assert decoded(fields["Subject"]) == text
        assert message["Subject"] == text

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "Hello",
            "two  blanks,   three",
            " blanks around ",
            "one long line of plain words " * 20,
            "Grüße aus Köln und schöne Wünsche für das nächste Jahr " * 10,
            "x" * 1000,
            "ü" * 1000,
            "😀 " * 300,
            "a: b; c, d <e@f.g>",
            "word " * 20 + "y" * 200,
        ],
        ids=lambda text: ascii(text)[:30],
    )
    def test_a_subject_arrives_as_it_was_given(self, text: str) -> None:
        message = mail(subject=text)
        assert decoded(parsed(message)["Subject"]) == text
        assert_lines_fit(message)

    def test_random_subjects_arrive_as_they_were_given(self) -> None:
        chance = random.Random(9)  # noqa: S311
        letters = "ab  é日😀=?_.,;:<>@\"'()-" + "=?utf-8?q?=0A?="
        for _ in range(300):
            text = "".join(chance.choices(letters, k=chance.randrange(200)))
            message = mail(subject=text)
            assert decoded(parsed(message)["Subject"]) == text
            assert_lines_fit(message)


class TestAddresses:
    @pytest.mark.parametrize("field", ["sender", "to", "cc", "reply_to"])
    @pytest.mark.parametrize("name", ENCODED_WORDS[:-1])
    def test_encoded_words_in_a_display_name_are_not_decoded(self, field: str, name: str) -> None:
        given = f'"{name}" <ada@example.com>'
        message = mail(**{field: [given] if field in ("to", "cc") else given})
        fields = parsed(message)
        header = {"sender": "From", "reply_to": "Reply-To"}.get(field, field.capitalize())
        assert set(fields) <= {*FIELDS, "Cc", "Reply-To"}
        assert mailboxes(fields[header]) == [(name, "ada@example.com")]

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("Ada", "Ada"),
            ('"Lovelace, Ada"', "Lovelace, Ada"),
            (r'"Ada \"the first\" \\ Lovelace"', 'Ada "the first" \\ Lovelace'),
            ("Dr. Ada (Analyst)", "Dr. Ada (Analyst)"),
            ("Jörg Müller", "Jörg Müller"),
            ('"Müller, Jörg"', "Müller, Jörg"),
            ("日本" * 60, "日本" * 60),
            ("n" * 250, "n" * 250),
            ("many short words " * 15, ("many short words " * 15).strip()),
        ],
    )
    def test_display_names_arrive_as_they_were_given(self, text: str, name: str) -> None:
        message = mail(sender=f"{text} <me@example.org>", to=[f"{text} <ada@example.com>, bob@example.com"])
        fields = parsed(message)
        assert mailboxes(fields["From"]) == [(name, "me@example.org")]
        assert mailboxes(fields["To"]) == [(name, "ada@example.com"), ("", "bob@example.com")]
        assert_lines_fit(message)

    def test_many_long_addresses_make_short_lines(self) -> None:
        address = "a" * 64 + "@" + ".".join(["b" * 50] * 3) + ".example"
        message = mail(to=[f'"{name}" <{address}>' for name in ("Ada, first of her name", "Grace")] * 25)
        assert_lines_fit(message, limit=len(address) + 10)
        assert len(mailboxes(parsed(message)["To"])) == 50

    @pytest.mark.parametrize(
        ("text", "addresses"),
        [
            ("a@x.example, b@x.example", ["a@x.example", "b@x.example"]),
            ("a@x.example,b@x.example,", ["a@x.example", "b@x.example"]),
            (", ,a@x.example, ,", ["a@x.example"]),
            ("a@x.example, a@x.example", ["a@x.example", "a@x.example"]),
            ('"Lovelace, Ada" <a@x.example>, "B \\", b" <b@x.example>', ["a@x.example", "b@x.example"]),
            ("", []),
            (" , ", []),
        ],
    )
    def test_a_string_may_list_several(self, text: str, addresses: list[str]) -> None:
        assert [mailbox.addr_spec for mailbox in read_mailboxes(text)] == addresses

    @pytest.mark.parametrize(
        "text",
        [
            "a@x.example b@x.example",
            "a@x.example; b@x.example",
            "a@x.example, bob",
            "Lovelace, Ada <a@x.example>",
            '"a@x.example, b@x.example',
            "Team: a@x.example, b@x.example;",
            "undisclosed-recipients:;",
            "a@x.example,\r\nBcc: b@x.example",
            "a@x.example\0, b@x.example",
            "a@x.example, " * 2000,
        ],
        ids=lambda text: ascii(text)[:40],
    )
    def test_a_list_with_an_invalid_element_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="address"):
            read_mailboxes(text)

    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("ada@MÜLLER.example", "ada@xn--mller-kva.example"),
            ("ada@faß.example", "ada@xn--fa-hia.example"),
            ("Ada@Example.COM", "Ada@example.com"),
            ("root@localhost", "root@localhost"),
            ("ada@mail.local", "ada@mail.local"),
        ],
    )
    def test_domains_are_normalized(self, text: str, address: str) -> None:
        assert read_mailbox(text).addr_spec == address

    def test_a_mail_goes_to_at_least_one(self) -> None:
        for to in ([], [""], [" , "]):
            with pytest.raises(ValueError, match="recipient"):
                mail(to=to)
        assert "Cc" not in mail(cc=["", ","])


def ready(**fields: object) -> EmailMessage:
    """A mail that was composed without `compose`, as by a plugin."""
    message = EmailMessage()
    for name, value in ({"From": "me@example.org", "To": "ada@example.com"} | fields).items():
        message[name.replace("_", "-")] = value
    message.set_content("Hi")
    return message


def fields_of(content: bytes) -> Sequence[str]:
    return message_from_bytes(content).keys()


class TestReadyMails:
    @pytest.mark.parametrize(
        "fields",
        [
            *({"Subject": text} for text in (*ENCODED_WORDS[:3], "=?utf-8?q?a=0Db?=", "=?utf-8?q?a=0Ab?=")),
            {"To": Address("=?utf-8?q?hi=0D=0ABcc=3A_evil=40x.test?=", "ada", "example.com")},
            {"X-Note": "=?utf-8?q?hi=0D=0ABcc=3A_evil=40x.test?="},
        ],
        ids=ascii,
    )
    async def test_decoded_line_breaks_add_no_field(self, fields: dict[str, object]) -> None:
        """Python 3.11.10 and later encode the line break. Older versions write it, so the mail is refused."""
        message = ready(**fields)
        async with running_smtp_server() as server:
            mailer = Mailer(None, None, [LOOPBACK])
            try:
                check_headers(message)
            except ValueError:
                error = await failure(mailer, message, server=plain(server))
                assert (error.code, error.retryable, server.sessions) == ("invalid_mail", False, 0)
            else:
                await mailer.send(message, plain(server))
                [received] = server.received
                assert set(fields_of(received.content)) <= {*FIELDS, *fields}
                assert received.recipients == ["ada@example.com"]

    def test_a_field_that_would_become_two_is_refused(self) -> None:
        """A custom header class can write anything, on every version of Python."""

        class Field(str):
            name = "Subject"

            def fold(self, *, policy: object) -> str:
                return f"Subject: {self}\r\n"

        for text in (
            "a\r\nBcc: b@x.test",
            "a\nBcc: b@x.test",
            "a\rBcc: b@x.test",
            "a\0b",
            "a\r\n\r\nbody",
            "a\n",
            "a\r",
        ):
            with pytest.raises(ValueError, match="line break"):
                check_headers(ready(Subject=Field(text)))
        check_headers(ready(Subject=Field("a\r\n folded")))

    def test_parts_are_checked_too(self) -> None:
        message = ready()
        message.add_attachment("text", filename="a.txt")
        check_headers(message)
        part = next(message.iter_attachments())
        part._headers.append(("X-Bad\r\nBcc", "b@x.test"))  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="line break"):
            check_headers(message)
