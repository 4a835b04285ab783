"""Accepts calls of webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import Conflict
from bloxserver.ids import new_id
from bloxserver.models.enums import FlowStatus, TriggerType
from bloxserver.queries.triggers import TriggerRow
from bloxserver.services.executions import (
    NO_FACTS,
    Facts,
    FlowNotRunning,
    Input,
    accept_for_trigger,
    input_of_body,
    require_depth,
)
from bloxserver.services.idempotency import HEADER, claim_key, require_valid_key
from bloxserver.services.rate_limits import UNLIMITED, Admission, read_admitted_webhook
from bloxserver.services.request_facts import request_facts
from bloxserver.services.webhook_deliveries import record_repetition
from bloxserver.services.webhook_responses import ResponseWait, response_wait
from bloxserver.services.webhook_schemes import Signature
from bloxserver.services.webhook_signatures import verify_signature


class WebhookCall(NamedTuple):
    """A received call of a webhook."""

    token: str
    body: bytes
    headers: Mapping[str, str]
    """By names in lower case."""
    given: Input
    """The body as it is stored."""
    depth: int
    """The call depth that the sender reports."""
    admission: Admission
    facts: Facts = NO_FACTS
    """What expressions can read of the request."""

    @property
    def has_key(self) -> bool:
        """Whether the sender chose an idempotency key."""
        return KEY_HEADER in self.headers


KEY_HEADER = HEADER.lower()
NO_HEADERS: Mapping[str, str] = {}


def webhook_call(
    token: str,
    body: bytes,
    headers: Mapping[str, str] = NO_HEADERS,
    depth: int = 0,
    admission: Admission = UNLIMITED,
    query: str = "",
) -> WebhookCall:
    """A call with the input that its body is."""
    given = input_of_body(body, headers.get("content-type"))
    return WebhookCall(token, body, headers, given, depth, admission, request_facts("POST", headers, query))


class AcceptedWebhook(NamedTuple):
    """The execution that a call started, or that an earlier call with the same key started."""

    execution_id: UUID
    is_repeated: bool = False
    wait: ResponseWait | None = None
    """How the caller waits for the response; None if they get it immediately."""


async def receive_webhook(session: AsyncSession, call: WebhookCall) -> AcceptedWebhook:
    """Accept a run by webhook.

    Raises `RateLimited`, `InvalidSignature`, `KeyReused` and `Unprocessable` for an invalid idempotency key, the errors
    of `check_webhook`, and `Forbidden` at a limit.
    """
    webhook = await read_admitted_webhook(session, call.token, call.admission)
    signature = await verify_signature(session, webhook, call.body, call.headers)
    execution_id = new_id()
    first = await _claim(session, webhook, call, signature, execution_id)
    if first is not None:
        await record_repetition(session, webhook.trigger_id, first, len(call.body))
        return AcceptedWebhook(first, is_repeated=True, wait=response_wait(webhook))
    check_webhook(webhook, call.depth)
    await accept_for_trigger(session, webhook, TriggerType.WEBHOOK, call.given, call.depth, execution_id, call.facts)
    return AcceptedWebhook(execution_id, wait=response_wait(webhook))


def check_webhook(webhook: TriggerRow, depth: int) -> None:
    """Raise `FlowNotRunning`, `Conflict` or `BadRequest` unless the webhook can start an execution now."""
    if webhook.flow_status is not FlowStatus.RUNNING:
        raise FlowNotRunning(webhook.flow_status)
    if not webhook.enabled:
        raise Conflict("trigger_disabled", "Webhook is disabled")
    require_depth(depth)


async def _claim(
    session: AsyncSession, webhook: TriggerRow, call: WebhookCall, signature: Signature | None, execution_id: UUID
) -> UUID | None:
    """The execution that an earlier call with the same key started; None if there was none."""
    key = call.headers.get(KEY_HEADER)
    if key is not None:
        require_valid_key(key)
    # The id of the sender takes precedence, because it may be signed. A replayed request can have another key.
    if signature is not None and (sender_id := signature.delivery_id(call.body, call.headers)):
        # Some senders change the body of a repeated delivery, for example to count the attempts.
        first = await claim_key(session, webhook.trigger_id, f"delivery {sender_id}", b"", str(execution_id))
    elif key is not None:
        first = await claim_key(session, webhook.trigger_id, f"key {key}", call.body, str(execution_id))
    else:
        return None
    return None if first is None else UUID(first)
