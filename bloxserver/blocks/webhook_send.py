"""`webhook.send`: sends its message to another server, signed according to Standard Webhooks."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, RootModel, field_validator

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError
from bloxserver.blocks.http_bodies import encode_json
from bloxserver.blocks.http_headers import ConfigHeaders, is_form, set_default
from bloxserver.blocks.http_request import MAX_TIMEOUT_SECONDS, Url, send_request, status_error, without_null
from bloxserver.blocks.shapes import object_shape
from bloxserver.clients.signatures import identify, sign
from bloxserver.signing_key_format import read_secret

OWN_HEADERS = frozenset({"webhook-id", "webhook-timestamp", "webhook-signature"})


def _checked_secret(secret: str) -> str:
    if "{{" not in secret:  # otherwise validated after the placeholders are replaced
        read_secret(secret)
    return secret


class WebhookPayload(RootModel[JsonValue]):
    """Any JSON value: the message for the other server."""


class WebhookConfig(BlockConfig):
    url: Url = Field(description="The URL of the receiver; the request is a POST.", repr=False)
    secret: Annotated[str, AfterValidator(_checked_secret)] | None = Field(
        None,
        description="The key of the signature: whsec_ and 24 to 64 bytes in base64, like {{ secrets.NAME }}. "
        "Default: no signature.",
        repr=False,
        json_schema_extra=without_null,
    )
    type: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="The type of the event, like order.paid. If set, the body is an object with type, timestamp and "
        "the message as data; else the body is the message.",
    )
    headers: ConfigHeaders = Field(
        {},
        description="Additional headers. Numbers and booleans become text; null removes a header.",
        repr=False,
    )
    timeout_seconds: float = Field(
        20, gt=0, le=MAX_TIMEOUT_SECONDS, description="The time limit for the whole request."
    )
    fail_on_error_status: bool = Field(True, description="Treat a status of 300 and above as an error.")

    @field_validator("secret", mode="before")
    @classmethod
    def _require_secret(cls, secret: object) -> object:
        # Otherwise a placeholder with the value null would send the message without a signature.
        if secret is None:
            raise ValueError("must not be null; remove it to send without a signature")
        return secret

    @field_validator("headers")
    @classmethod
    def _refuse_form(cls, headers: dict[str, str]) -> dict[str, str]:
        if is_form(headers):
            raise ValueError("the Content-Type must not be a form type, because the body is JSON; remove it")
        return headers


async def handle_webhook(payload: WebhookPayload, config: WebhookConfig, context: BlockContext) -> JsonValue:
    # The id is the same for every attempt, so that the receiver can detect a repeated message.
    message_id = "msg_" + sha256(context.idempotency_key.encode()).hexdigest()[:32]
    body = encode_json(_event(payload.root, config, context))
    given = {name: value for name, value in config.headers.items() if name.lower() not in OWN_HEADERS}
    set_default(given, "Content-Type", "application/json")
    response = await send_request(
        context,
        "POST",
        config.url,
        headers=given | _identity(config.secret, message_id, body, context),
        content=body,
        timeout_seconds=config.timeout_seconds,
    )
    if response.status >= 300 and config.fail_on_error_status:
        raise status_error(response, context.clock())
    return {"status": response.status, "id": message_id}


def _event(payload: JsonValue, config: WebhookConfig, context: BlockContext) -> JsonValue:
    if config.type is None:
        return payload
    timestamp = context.clock().isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"type": config.type, "timestamp": timestamp, "data": payload}


def _identity(secret: str | None, message_id: str, body: bytes, context: BlockContext) -> dict[str, str]:
    """Return the headers that only this block may set."""
    if secret is None:
        return identify(message_id, context.clock())
    try:
        return sign(secret, message_id, context.clock(), body)
    except ValueError as error:
        raise BlockError("invalid_secret", str(error), retryable=False) from None


block = Block(
    name="webhook.send",
    description="Sends its message to another server as a webhook, signed if a secret is set.",
    payload=WebhookPayload,
    config=WebhookConfig,
    answer_shape=lambda config, message: object_shape("status", "id"),
    handler=handle_webhook,
    templates=frozenset({"url", "secret", "headers"}),
    example={
        "config": {"url": "https://example.com/hooks/orders", "type": "order.paid"},
        "payload": {"order": 17, "total": 99.5},
    },
)
