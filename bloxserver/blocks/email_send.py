"""`email.send`: sends an email."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, RootModel, model_validator

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError
from bloxserver.blocks.http_request import MAX_TIMEOUT_SECONDS
from bloxserver.blocks.shapes import object_shape
from bloxserver.clients.mail import MailError, MailServer, Security, compose
from bloxserver.clients.mail_headers import read_mailbox, split_addresses

MAX_RECIPIENTS = 50
MAX_BODY_CHARACTERS = 500_000


def _checked_mailbox(text: str) -> str:
    if "{{" not in text:  # otherwise validated after the placeholders are replaced
        read_mailbox(text)
    return text


def _as_list(value: object) -> object:
    """One string is a list of addresses. Empty and null entries are ignored, as optional data fills placeholders."""
    entries: object = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(entries, list):
        return entries
    return [address for entry in entries for address in _entry(entry)]


def _entry(entry: object) -> list[object]:
    if entry is None:
        return []
    if not isinstance(entry, str):
        return [entry]
    # The text of a placeholder may contain commas.
    return [entry] if "{{" in entry else [*split_addresses(entry)]


def _none_if_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _as_text(value: object) -> object:
    # A text that is one placeholder becomes the value itself. Here it is converted as within other text.
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


Mailbox = Annotated[str, AfterValidator(_checked_mailbox)]
Text = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str)]
OptionalMailbox = Annotated[Mailbox | None, BeforeValidator(_none_if_blank, json_schema_input_type=str | None)]
Mailboxes = Annotated[list[Mailbox], BeforeValidator(_as_list, json_schema_input_type=str | list[str | None] | None)]


class EmailPayload(RootModel[JsonValue]):
    """Any JSON value. The config selects what is sent."""


class EmailServer(BlockConfig):
    """A mail server to use instead of the installation's."""

    host: str = Field(min_length=1, max_length=253, description="Host name.")
    port: int = Field(587, ge=1, le=65535, description="One of 25, 465, 587 and 2525.")
    security: Security = Field("starttls", description="How the connection is encrypted.")
    username: str | None = Field(None, description="User name, if the server requires one.")
    password: str | None = Field(None, description="Password, like {{ secrets.NAME }}.", repr=False)


class EmailConfig(BlockConfig):
    to: Mailboxes = Field(
        min_length=1, max_length=MAX_RECIPIENTS, description="Recipients: addresses separated by commas, or a list."
    )
    cc: Mailboxes = Field([], max_length=MAX_RECIPIENTS, description="Recipients of a copy, in the same form.")
    reply_to: OptionalMailbox = Field(None, description="Address for replies.")
    sender: OptionalMailbox = Field(
        None,
        alias="from",
        description="Sender. Default: SMTP_FROM; SMTP_SENDERS limits others. Required if server is set.",
    )
    subject: Text = Field(max_length=1000, description="One line.")
    text: Text | None = Field(None, max_length=MAX_BODY_CHARACTERS, description="The body as plain text.")
    html: Text | None = Field(None, max_length=MAX_BODY_CHARACTERS, description="The body as HTML.")
    server: EmailServer | None = Field(None, description="The mail server. Default: that of the installation.")
    timeout_seconds: float = Field(30, gt=0, le=MAX_TIMEOUT_SECONDS, description="Limit for the whole submission.")

    @model_validator(mode="after")
    def _complete(self) -> EmailConfig:
        if self.text is None and self.html is None:
            raise ValueError("text, html or both are required")
        if self.server is not None and self.sender is None:
            raise ValueError("from is required with a server")
        return self


async def handle_email(payload: EmailPayload, config: EmailConfig, context: BlockContext) -> JsonValue:
    sender = config.sender or context.mail.sender
    if sender is None:
        raise BlockError("mail_not_configured", "the config has no from, and SMTP_FROM is not set", retryable=False)
    try:
        message = compose(
            key=context.idempotency_key,
            moment=context.clock(),
            sender=sender,
            to=config.to,
            cc=config.cc,
            reply_to=config.reply_to,
            subject=config.subject,
            text=config.text,
            html=config.html,
        )
    except ValueError as error:
        raise BlockError("invalid_mail", str(error), retryable=False) from None
    server = None if config.server is None else MailServer(**config.server.model_dump())
    try:
        accepted = await context.mail.send(message, server, timeout_seconds=config.timeout_seconds)
    except MailError as error:
        raise BlockError(error.code, error.message, retryable=error.retryable) from None
    fields = [message[name] for name in ("To", "Cc") if name in message]
    recipients = dict.fromkeys(address.addr_spec for field in fields for address in field.addresses)
    refused = [address for address in recipients if address not in accepted]
    return {"message_id": str(message["Message-ID"]), "accepted": [*accepted], "refused": [*refused]}


block = Block(
    name="email.send",
    description="Sends an email with values from the message.",
    payload=EmailPayload,
    config=EmailConfig,
    answer_shape=lambda config, message: object_shape("message_id", "accepted", "refused"),
    handler=handle_email,
    templates=frozenset({"to", "cc", "reply_to", "from", "subject", "text", "html", "server"}),
    example={
        "config": {
            "to": "{{ payload.email }}",
            "subject": "Order {{ payload.order }} is on its way",
            "text": "Hello {{ payload.name }}, your order has left us today.",
        },
        "payload": {"email": "ada@example.com", "name": "Ada", "order": 17},
    },
)
