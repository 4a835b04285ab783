"""Requests to Stripe's meters."""

from __future__ import annotations

import enum
from datetime import datetime
from http import HTTPStatus
from typing import NamedTuple

import structlog

from bloxserver.billing.client import Stripe, errors
from bloxserver.errors import Unavailable
from bloxserver.observability import metrics

log = structlog.stdlib.get_logger("bloxserver.billing")

MAX_ERROR = 255
NOT_PROCESSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS)
"""Stripe has not accepted the event, and may accept it later: the key is wrong, or there are too many requests."""


class Outcome(enum.Enum):
    ACCEPTED = enum.auto()
    """Also if an earlier attempt was accepted."""
    NOT_PROCESSED = enum.auto()
    REFUSED = enum.auto()
    UNKNOWN = enum.auto()
    """There was no answer, or a failure of Stripe. The event may have been accepted."""


class Answer(NamedTuple):
    outcome: Outcome
    error: str | None = None


async def send_event(
    stripe: Stripe, *, event_name: str, identifier: str, customer_id: str, value: int, timestamp: datetime
) -> Answer:
    """Send one meter event with one request."""
    from stripe import StripeError

    try:
        await stripe.client.v1.billing.meter_events.create_async(
            {
                "event_name": event_name,
                "identifier": identifier,
                "timestamp": int(timestamp.timestamp()),
                "payload": {"stripe_customer_id": customer_id, "value": str(value)},
            },
            # With the library's own repetitions, the outcome of the first request would be lost.
            {"max_network_retries": 0},
        )
    except StripeError as error:
        status, message = error.http_status, str(error)
        if status == HTTPStatus.BAD_REQUEST and identifier in message and "already exists" in message:
            return Answer(Outcome.ACCEPTED)
        kind = type(error).__name__
        metrics.STRIPE_ERRORS.labels(kind).inc()
        text = f"{status or 'no answer'} {error.code or kind}"[:MAX_ERROR]
        if status in NOT_PROCESSED:
            return Answer(Outcome.NOT_PROCESSED, text)
        has_failed = status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.CONFLICT
        return Answer(Outcome.UNKNOWN if has_failed else Outcome.REFUSED, text)
    return Answer(Outcome.ACCEPTED)


async def read_meter_id(stripe: Stripe, event_name: str) -> str:
    """The id of the active meter of these events. Raises `StripeUnavailable`, and `Unavailable` if there is none."""
    with errors():
        found = await stripe.client.v1.billing.meters.list_async({"status": "active", "limit": 100})
        async for meter in found.auto_paging_iter():
            if meter.event_name == event_name:
                return meter.id
    raise Unavailable("billing_not_set_up", f"Stripe has no active meter of the events {event_name}")


async def read_sum(stripe: Stripe, meter_id: str, customer_id: str, start: int, end: int) -> int:
    """The sum of a customer's events from `start` until before `end`, in seconds since 1970 that begin minutes.

    Stripe adds an event some time after it has accepted it. Raises `StripeUnavailable`.
    """
    with errors():
        found = await stripe.client.v1.billing.meters.event_summaries.list_async(
            meter_id, {"customer": customer_id, "start_time": start, "end_time": end, "limit": 100}
        )
        return round(sum([summary.aggregated_value async for summary in found.auto_paging_iter()]))
