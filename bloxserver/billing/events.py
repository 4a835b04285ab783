"""Events of Stripe: their signature, and what they cause."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.client import Stripe
from bloxserver.billing.invoices import write_payment_email
from bloxserver.billing.sync import sync_customer
from bloxserver.clock import now
from bloxserver.errors import BadRequest, BloxError
from bloxserver.models.database import release
from bloxserver.models.tables import StripeEventRecord
from bloxserver.models.upsert import insert_into
from bloxserver.services.webhook_schemes import Headers, SignatureInvalid, StripeScheme
from bloxserver.setting_types import split_commas
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.billing")

SYNCED = (
    "checkout.session.completed",
    "customer.deleted",
    "customer.updated",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.trial_will_end",
    "invoice.paid",
    "invoice.payment_succeeded",
    "invoice.payment_failed",
    "invoice.payment_action_required",
    "invoice.upcoming",
)
"""Events after which the customer is read again."""
PAYMENTS = ("invoice.paid", "invoice.payment_succeeded")
"""Events after which an invoice is read."""
ALERTS = ("charge.dispute.created", "v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
"""Events that an operator must look at."""
ENDPOINT_EVENTS = tuple(kind for kind in SYNCED + ALERTS if not kind.startswith("v1."))
"""Events of a webhook endpoint. The others are thin events, which need a destination of their own."""
MAX_EVENT_BYTES = 256 * 1024
MAX_ID = 255
MAX_SECONDS = 2**40


def webhook_secrets(settings: Settings) -> Sequence[str]:
    """The signing secrets in `STRIPE_WEBHOOK_SECRET`: one, or two during a rotation."""
    given = settings.stripe_webhook_secret
    return () if given is None else split_commas(given.get_secret_value())


def is_live(settings: Settings) -> bool:
    """Whether the secret key is of the live mode, not of a test mode or a sandbox."""
    key = settings.stripe_secret_key
    return key is not None and "_live_" in key.get_secret_value()


class Event(NamedTuple):
    id: str
    type: str
    customer_id: str | None
    created: int | None
    """When Stripe created the event, in seconds since 1970."""
    invoice_id: str | None = None


def read_event(body: bytes, headers: Headers, secrets: Sequence[str], moment: datetime, *, live: bool) -> Event:
    """The event in the body. Raises `BadRequest` unless it is signed with one of the secrets and is well formed.

    Events of the other mode, live or test, are refused.
    """
    try:
        StripeScheme(scheme="stripe").verify(secrets, body, headers, moment)
    except SignatureInvalid:
        raise BadRequest("invalid_signature", "The signature of the event is missing or invalid") from None
    try:
        found = json.loads(body) if len(body) <= MAX_EVENT_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not _is_text(found.get("id")) or not _is_text(found.get("type")):
        raise BadRequest("invalid_event", "The body is not an event of Stripe")
    if found.get("livemode", live) is not live:
        raise BadRequest("wrong_mode", "The event is of the other mode, live or test")
    created = found.get("created") if _is_time(found.get("created")) else None
    data = found.get("data")
    subject = data.get("object") if isinstance(data, dict) else None
    if not isinstance(subject, dict):
        return Event(found["id"], found["type"], None, created)
    invoice_id = subject.get("id") if subject.get("object") == "invoice" else None
    invoice_id = invoice_id if _is_text(invoice_id) else None
    return Event(found["id"], found["type"], _customer_of(subject), created, invoice_id)


def _customer_of(subject: Mapping[str, Any]) -> str | None:
    customer = subject.get("id") if subject.get("object") == "customer" else subject.get("customer")
    if isinstance(customer, dict):  # an expanded object
        customer = customer.get("id")
    return customer if _is_text(customer) else None


def _is_time(value: object) -> bool:
    return isinstance(value, int) and 0 < value < MAX_SECONDS


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isascii() and value.isprintable()


async def process_event(session: AsyncSession, stripe: Stripe, event: Event) -> bool:
    """Do what the event causes. Returns False if it was done before.

    Raises `StripeUnavailable`; Stripe then sends the event again.
    """
    record = StripeEventRecord
    inserted = insert_into(session, record).values(event_id=event.id, event_type=event.type)
    await session.execute(inserted.on_conflict_do_nothing(index_elements=[record.event_id]))
    done = await session.scalar(sa.select(record.processed_at).where(record.event_id == event.id))
    if done is not None:
        return False
    if event.type in ALERTS:
        log.error("event of Stripe needs attention", event_type=event.type, event_id=event.id)
    error: BloxError | None = None
    if event.type in SYNCED and event.customer_id is not None:
        try:
            await sync_customer(session, stripe, event.customer_id)
            if event.type in PAYMENTS and event.invoice_id is not None:
                await write_payment_email(session, stripe, event.invoice_id)
        except BloxError as failure:
            error = failure
    result = {"processed_at": now(), "error_message": None} if error is None else {"error_message": error.code}
    await session.execute(sa.update(record).where(record.event_id == event.id).values(result))
    if error is not None:
        await release(session)
        raise error
    return True
