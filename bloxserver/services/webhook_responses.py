"""When the caller of a webhook gets the response: `respond` and `respond_seconds` of the trigger's config."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from bloxserver.errors import Unprocessable
from bloxserver.plans import Plan
from bloxserver.queries.triggers import TriggerRow

DEFAULT_SECONDS = 10.0
MAX_SECONDS = 60


class Respond(enum.StrEnum):
    """When the caller gets the response."""

    IMMEDIATELY = "immediately"
    END = "end"
    """When the execution has ended."""
    LISTENER = "listener"
    """When a listener with the block `respond` has answered, or the execution has ended."""


class ResponseWait(NamedTuple):
    """The wait of a webhook's caller."""

    until: Respond
    seconds: float
    user_id: UUID
    """The owner of the webhook, whose open responses are limited."""
    plan: Plan


def check_response(config: Mapping[str, Any]) -> None:
    """Raise `Unprocessable` unless the config of a webhook has a valid `respond` and `respond_seconds`, or none."""
    problems: dict[str, str] = {}
    if config.get("respond", Respond.IMMEDIATELY) not in [*Respond]:
        problems["body.config.respond"] = f"Must be one of {', '.join(Respond)}"
    if _seconds_of(config) is None:
        problems["body.config.respond_seconds"] = f"Must be a number greater than 0 and at most {MAX_SECONDS}"
    if problems:
        raise Unprocessable(problems)


def response_wait(webhook: TriggerRow) -> ResponseWait | None:
    """The wait of a webhook's caller; None if they get the response immediately.

    An invalid config, which an earlier version or another program has stored, means no wait.
    """
    until = webhook.config.get("respond")
    if until not in (Respond.END, Respond.LISTENER) or (seconds := _seconds_of(webhook.config)) is None:
        return None
    return ResponseWait(Respond(until), seconds, webhook.user_id, webhook.plan)


def _seconds_of(config: Mapping[str, Any]) -> float | None:
    """The longest wait; None if the value is invalid."""
    value = config.get("respond_seconds", DEFAULT_SECONDS)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value <= MAX_SECONDS else None
