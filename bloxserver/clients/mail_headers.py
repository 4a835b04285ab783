"""Header fields of a mail: addresses are validated and text is encoded here.

`email.headerregistry` decodes encoded words (RFC 2047) in every value. On Python before 3.11.10, a
line break inside such a word starts another header field. The classes of this module do not decode values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.errors import MessageDefect
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, Policy
from typing import Literal

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email

Mailbox = Address
Senders = Literal["fixed", "name", "domain"]
"""The senders that the installation's mail server accepts from users; see `Settings.smtp_senders`."""

# An installation may use a mail server of its own network, for example for `.local`. The library has no option for it.
SPECIAL_USE_DOMAIN_NAMES.clear()

MAX_MAILBOX_CHARACTERS = 320
MAX_LIST_CHARACTERS = 20_000
MAX_LINE_CHARACTERS = 76
MAX_WORD_CHARACTERS = 60
UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line breaks and half surrogate pairs: no header field may contain them."""
LIST_ELEMENT = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"?)+')
"""An element of an address list. Commas in a quoted string do not end it."""
QUOTED_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
FIELD_NAME = re.compile(r"[!-9;-~]+")
NEW_FIELD = re.compile(r"\r\n(?![ \t])|\r(?!\n)|(?<!\r)\n(?![ \t])|\0")
"""Text in a folded header field that would begin another field."""


def read_mailbox(text: str) -> Mailbox:
    """The one address in `text`, like `ada@example.com` or `Ada <ada@example.com>`.

    The domain is returned in lower case and, if it is internationalized, in its ASCII form. Raises `ValueError`.
    """
    if len(text) > MAX_MAILBOX_CHARACTERS or UNSAFE.search(text):
        raise _invalid("it is too long or contains control characters")
    name, address = _split_name(text.strip())
    try:
        # Validation makes no DNS lookup, and a domain without a period is valid in a local network. Internationalized
        # local parts would need SMTPUTF8 at every server on the way.
        valid = validate_email(
            address, check_deliverability=False, globally_deliverable=False, allow_smtputf8=False, strict=True
        )
    except EmailNotValidError as error:
        raise _invalid(str(error)) from None
    return Mailbox(name, valid.ascii_local_part or "", valid.ascii_domain or "")


def sender_problem(sender: Mailbox, own: Mailbox, allowed: Senders) -> str | None:
    """Why a user may not send as `sender` through the server of the installation; None if they may.

    The address is always accepted without a display name.
    """
    if sender.domain.lower() != own.domain.lower():
        return f"this server sends only from {own.domain if allowed == 'domain' else own.addr_spec}"
    if allowed == "domain":
        return None
    if sender.username != own.username:
        return f"this server sends only from {own.addr_spec}"
    if allowed == "fixed" and sender.display_name not in ("", own.display_name):
        return f"this server sends only as {own}"
    return None


def read_mailboxes(text: str) -> list[Mailbox]:
    """The addresses in `text`, separated by commas; empty elements are ignored. Raises `ValueError`."""
    if len(text) > MAX_LIST_CHARACTERS:
        raise ValueError(f"a list of addresses may have at most {MAX_LIST_CHARACTERS} characters")
    return [read_mailbox(element) for element in split_addresses(text)]


def split_addresses(text: str) -> list[str]:
    """The elements of a list of addresses, without the empty ones; none is validated."""
    return [element for each in LIST_ELEMENT.findall(text) if (element := each.strip())]


def _split_name(text: str) -> tuple[str, str]:
    """The display name, without its quotes, and the address. Raises `ValueError`."""
    if not text.endswith(">"):
        return "", text
    name, bracket, address = text[:-1].rpartition("<")
    name = name.strip()
    quoted = QUOTED_STRING.fullmatch(name)
    if quoted:
        name = re.sub(r"\\(.)", r"\1", quoted[1])
    if not bracket or (not quoted and re.search('["<>@]', name)):
        raise _invalid('a display name with one of "<>@ must be in double quotes')
    return name, address


def _invalid(reason: str) -> ValueError:
    message = f"an address must be like ada@example.com or Ada <ada@example.com>, several separated by commas: {reason}"
    return ValueError(message)


class TextHeader(str):
    """A header field of unstructured text, such as a subject. Its value is the text, never decoded."""

    __slots__ = ("name",)

    name: str
    defects: tuple[MessageDefect, ...] = ()

    @classmethod
    def of(cls, name: str, text: str) -> TextHeader:
        """Raises `ValueError` unless `text` is one line of text."""
        if UNSAFE.search(text):
            raise ValueError(f"a {name.lower()} must be one line of text")
        header = cls(text)
        header.name = name
        return header

    def fold(self, *, policy: Policy) -> str:
        """The field as it is sent. The policy of `EmailMessage` calls this."""
        return f"{self.name}: {_encode(str(self), self.name, policy.linesep)}{policy.linesep}"


class AddressHeader(str):
    """A header field with a list of addresses."""

    __slots__ = ("addresses", "name")

    name: str
    addresses: tuple[Mailbox, ...]
    defects: tuple[MessageDefect, ...] = ()

    @classmethod
    def of(cls, name: str, mailboxes: Iterable[Mailbox]) -> AddressHeader:
        addresses = tuple(mailboxes)
        header = cls(", ".join(str(address) for address in addresses))
        header.name, header.addresses = name, addresses
        return header

    def fold(self, *, policy: Policy) -> str:
        """The field as it is sent, with each address on a separate line."""
        separator = f",{policy.linesep} "
        addresses = separator.join(_encode_mailbox(each, self.name, policy.linesep) for each in self.addresses)
        return f"{self.name}: {addresses}{policy.linesep}"


def _encode_mailbox(mailbox: Mailbox, field: str, linesep: str) -> str:
    name = mailbox.display_name
    if not name:
        return mailbox.addr_spec
    if not name.isascii() or "=?" in name or len(name) > MAX_WORD_CHARACTERS:
        name = _encode(name, field, linesep)
    elif not ATOMS.fullmatch(name):
        name = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    last_line = name.rpartition(linesep)[2]
    fits = len(field) + len(last_line) + len(mailbox.addr_spec) + 6 <= MAX_LINE_CHARACTERS
    return f"{name}{' ' if fits else linesep + ' '}<{mailbox.addr_spec}>"


def _encode(text: str, field: str, linesep: str) -> str:
    """The text, folded. Where a receiver could read something else, all of it becomes encoded words."""
    plain = text.isascii() and "=?" not in text and text == " ".join(text.split())
    plain = plain and all(len(word) <= MAX_WORD_CHARACTERS for word in text.split())
    charset = "us-ascii" if plain else "utf-8"
    return Header(text, charset, header_name=field, maxlinelen=MAX_LINE_CHARACTERS).encode(linesep=linesep)


def check_headers(message: EmailMessage) -> None:
    """Raise `ValueError` if a header field of the message or of its parts would become several.

    Newer versions of Python refuse to write such a message. This check holds on all versions.
    """
    for part in message.walk():
        for name, value in part.items():
            field = SMTP.fold(name, value if hasattr(value, "name") else str(value))
            if not FIELD_NAME.fullmatch(name) or NEW_FIELD.search(field.removesuffix(SMTP.linesep)):
                raise ValueError("a header field contains a line break")
