"""`email.send`: sends a mail."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, RootModel, model_validator

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError
from bloxserver.blocks.http_request import MAX_TIMEOUT_SECONDS
from bloxserver.clients.mail import MailError, MailServer, Security, compose, read_mailbox

MAX_RECIPIENTS = 50
MAX_BODY_CHARACTERS = 500_000


def _checked_mailbox(text: str) -> str:
    if "{{" not in text:  # known when its placeholders are replaced
        read_mailbox(text)
    return text


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_text(value: object) -> object:
    # A text that is one placeholder becomes the value itself: here it means what it would within other text.
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


Mailbox = Annotated[str, AfterValidator(_checked_mailbox)]
Text = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str)]
Mailboxes = Annotated[list[Mailbox], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]


class EmailPayload(RootModel[JsonValue]):
    """Any JSON value; the config says what of it is sent."""


class EmailServer(BlockConfig):
    """Another mail server than the installation's."""

    host: str = Field(min_length=1, max_length=253, description="Its name.")
    port: int = Field(587, ge=1, le=65535, description="One of 25, 465, 587 and 2525.")
    security: Security = Field("starttls", description="How the connection is encrypted.")
    username: str | None = Field(None, description="User name, if it wants one.")
    password: str | None = Field(None, description="Password, like {{ secrets.NAME }}.", repr=False)


class EmailConfig(BlockConfig):
    to: Mailboxes = Field(min_length=1, max_length=MAX_RECIPIENTS, description="Whom it goes to, one or a list.")
    cc: Mailboxes = Field([], max_length=MAX_RECIPIENTS, description="Who gets a copy, one or a list.")
    reply_to: Mailbox | None = Field(None, description="Where answers go.")
    sender: Mailbox | None = Field(
        None, alias="from", description="Whom it comes from; SMTP_FROM unless set. Required with a server."
    )
    subject: Text = Field(max_length=1000, description="One line.")
    text: Text | None = Field(None, max_length=MAX_BODY_CHARACTERS, description="The mail as plain text.")
    html: Text | None = Field(None, max_length=MAX_BODY_CHARACTERS, description="The mail as HTML.")
    server: EmailServer | None = Field(None, description="Where it is handed in; the installation's unless set.")
    timeout_seconds: float = Field(30, gt=0, le=MAX_TIMEOUT_SECONDS, description="For all of it.")

    @model_validator(mode="after")
    def _complete(self) -> EmailConfig:
        if self.text is None and self.html is None:
            raise ValueError("a mail needs a text, an html or both")
        if self.server is not None and self.sender is None:
            raise ValueError("a mail that goes to a server of its own needs a from")
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
    refused = [each for each in map(_address, (*config.to, *config.cc)) if each not in accepted]
    return {"message_id": str(message["Message-ID"]), "accepted": [*accepted], "refused": [*refused]}


def _address(mailbox: str) -> str:
    return read_mailbox(mailbox).addr_spec


block = Block(
    name="email.send",
    description="Sends a mail that is put together from its message.",
    payload=EmailPayload,
    config=EmailConfig,
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
