"""Counts the events that Stripe and Clerk send, and measures how late they are processed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BloxError, NotFound
from bloxserver.models.database import after_commit
from bloxserver.observability import metrics

Provider = Literal["stripe", "clerk"]


@dataclass
class ReceivedEvent:
    """What the block of `counted_event` finds out about an event."""

    created: float | None = None
    """When the provider created the event, in seconds since 1970; None if the event does not have it."""
    is_repeated: bool = False
    """Whether the event was processed before."""


@contextmanager
def counted_event(provider: Provider, session: AsyncSession) -> Iterator[ReceivedEvent]:
    """Count the event that the block processes. A route that is switched off counts nothing."""
    event = ReceivedEvent()
    try:
        yield event
    except NotFound:
        raise
    except BloxError as error:
        is_refused = error.status < 500
        outcome = error.code if error.code == "invalid_signature" else "refused" if is_refused else "failed"
        metrics.PROVIDER_EVENTS.labels(provider, outcome).inc()
        raise
    except Exception:
        metrics.PROVIDER_EVENTS.labels(provider, "failed").inc()
        raise
    if session.in_transaction():
        after_commit(session, lambda: _note(provider, event))
    else:  # an event that needs no statement
        _note(provider, event)


def _note(provider: Provider, event: ReceivedEvent) -> None:
    metrics.PROVIDER_EVENTS.labels(provider, "repeated" if event.is_repeated else "processed").inc()
    if event.created is not None and not event.is_repeated:
        lag = max(0.0, now().timestamp() - event.created)
        metrics.PROVIDER_EVENT_LAG_SECONDS.labels(provider).observe(lag)
