"""Limits of a user's calls with the operator's keys: requests and tokens in a minute, and concurrent calls.

A call reserves its tokens before it is sent, and settles them afterwards with what the provider counted. Stores do both
exactly, for all processes. A reservation whose process has died expires.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from bloxserver.clients.model_errors import ModelError
from bloxserver.ids import new_id
from bloxserver.llm.calls import Caller, ModelCall, Quota
from bloxserver.model_prices import CHARACTERS_PER_TOKEN, RESPONSE_TOKENS
from bloxserver.plans import Plan

WINDOW_SECONDS = 60
CONCURRENCY_RETRY_SECONDS = 3.0
EXPIRY_MARGIN = timedelta(seconds=30)


class Limit(StrEnum):
    """Names of attributes of `Plan`."""

    REQUESTS = "llm_requests_per_minute"
    TOKENS = "llm_tokens_per_minute"
    CONCURRENT = "llm_concurrent"


WHAT = {
    Limit.REQUESTS: "calls of language models in a minute",
    Limit.TOKENS: "tokens of language models in a minute",
    Limit.CONCURRENT: "concurrent calls of language models",
}


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a call may use. `tokens` is an estimate."""

    id: UUID
    user_id: UUID
    minute: int
    tokens: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Settlement:
    """A reservation, and the tokens that the call has used."""

    reservation: Reservation
    tokens: int


@dataclass(frozen=True, slots=True)
class Used:
    """What a user has used in a minute, the reservations included."""

    requests: int
    tokens: int
    active: int


class LimitStore(Protocol):
    """Counts what users use, for all processes."""

    async def reserve(self, reservation: Reservation, plan: Plan) -> tuple[bool, Used]:
        """Count the reservation if it is within all limits of the plan. Returns whether it was counted."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """End reservations. Those that have expired are ignored."""

    async def aclose(self) -> None:
        """Close the connections."""


class ModelLimitReached(ModelError):
    """A limit of the user's plan is reached. `retry_after` is the time until the call may be possible, in seconds."""

    def __init__(self, limit: Limit, maximum: int, used: int, retry_after: float | None) -> None:
        message = f"your plan allows {maximum} {WHAT[limit]}, and {used} are used"
        super().__init__("llm_limit_reached", message, retryable=retry_after is not None, retry_after=retry_after)
        self.is_postponed = retry_after is not None
        self.limit = limit
        self.maximum = maximum
        self.used = used


def reservation_of(call: ModelCall, caller: Caller, moment: datetime, seconds: float) -> Reservation:
    """The reservation for a call that takes at most this many seconds."""
    return Reservation(
        new_id(),
        caller.user_id,
        int(moment.timestamp()) // WINDOW_SECONDS,
        estimated_tokens(call),
        moment + timedelta(seconds=seconds) + EXPIRY_MARGIN,
    )


def estimated_tokens(call: ModelCall) -> int:
    """An upper estimate of the input and output tokens of a call."""
    return sum(estimated_usage(call))


def estimated_usage(call: ModelCall) -> tuple[int, int]:
    """Upper estimates of the input tokens and of the output tokens of a call."""
    characters = sum(map(len, _texts(call)))
    input_tokens = call.input_tokens - (-characters // CHARACTERS_PER_TOKEN)
    return input_tokens, RESPONSE_TOKENS if call.max_tokens is None else call.max_tokens


def _texts(call: ModelCall) -> Iterator[str]:
    for message in call.messages:
        for part in message.parts:
            for value in (getattr(part, "content", None), getattr(part, "args", None)):
                if value is not None:
                    yield value if isinstance(value, str) else str(value)
    for tool in call.tools:
        yield from (tool.name, tool.description or "", str(tool.parameters_json_schema))


def reached(reservation: Reservation, plan: Plan, used: Used, moment: datetime) -> ModelLimitReached:
    """The error for a reservation that was refused."""
    reset = _seconds_until_reset(reservation, moment)
    if used.active >= plan.llm_concurrent:
        return ModelLimitReached(Limit.CONCURRENT, plan.llm_concurrent, used.active, CONCURRENCY_RETRY_SECONDS)
    if used.requests >= plan.llm_requests_per_minute:
        return ModelLimitReached(Limit.REQUESTS, plan.llm_requests_per_minute, used.requests, reset)
    if reservation.tokens > plan.llm_tokens_per_minute:  # never possible
        return ModelLimitReached(Limit.TOKENS, plan.llm_tokens_per_minute, reservation.tokens, None)
    return ModelLimitReached(Limit.TOKENS, plan.llm_tokens_per_minute, used.tokens, reset)


def quota_of(reservation: Reservation, plan: Plan, used: Used, moment: datetime) -> Quota:
    """What remains of the requests in a minute after this reservation."""
    limit = plan.llm_requests_per_minute
    reset = math.ceil(_seconds_until_reset(reservation, moment))
    return Quota(limit, max(0, limit - used.requests), max(1, reset))


def _seconds_until_reset(reservation: Reservation, moment: datetime) -> float:
    return max(0.0, (reservation.minute + 1) * WINDOW_SECONDS - moment.timestamp())
