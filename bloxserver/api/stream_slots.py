"""Limits of concurrent event streams and `?wait` requests, for each user and for the process."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request

from bloxserver.api.dependencies import (
    AuthenticatedUser,
    Authorization,
    ReceivedCall,
    Sessions,
    WaitSeconds,
    WebhookToken,
)
from bloxserver.errors import LimitReached, Unavailable
from bloxserver.plans import Plan
from bloxserver.queries.triggers import read_webhook
from bloxserver.queries.users import read_plan

MAX_STREAMS = 5_000
"""Streams of a process. From then on, users may hold equal shares of them."""
REMEMBERED_SECONDS = 1.0
"""How long a refusal is repeated without reading the user's plan again."""
MAX_REMEMBERED = 1_000
HINT = (
    "Close streams that are no longer needed, poll the execution, "
    "or upgrade your plan. The limit applies to each server process."
)


@dataclass(frozen=True)
class _Refusal:
    user_id: UUID
    limit: int
    until: float


class StreamSlots:
    """The streams that are open on this process, by user."""

    def __init__(self, maximum: int = MAX_STREAMS, clock: Callable[[], float] = time.monotonic) -> None:
        self._maximum = maximum
        self._clock = clock
        self._open: Counter[UUID] = Counter()
        self._refused: dict[str, _Refusal] = {}

    @contextmanager
    def take(self, user_id: UUID, plan: Plan, credential: str = "") -> Iterator[None]:
        """Count one stream within the block. Raises `LimitReached` (`streams`), or `Unavailable` on a full process."""
        used = self._open[user_id]
        if used >= plan.streams:
            if credential:
                self._remember(credential, _Refusal(user_id, plan.streams, self._clock() + REMEMBERED_SECONDS))
            raise LimitReached("streams", plan.streams, used, HINT)
        if self._open.total() >= self._maximum and used >= self._maximum // len(self._open):
            raise Unavailable("too_many_streams", "The server has too many open streams. Poll the execution instead.")
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]

    def refuse_again(self, credential: str) -> None:
        """Raise `LimitReached` if this credential was just refused and its user has closed no stream since.

        This reads no database. A client that is refused may try again hundreds of times per second.
        """
        refusal = self._refused.get(credential)
        if refusal is None:
            return
        used = self._open[refusal.user_id]
        if used >= refusal.limit and self._clock() < refusal.until:
            raise LimitReached("streams", refusal.limit, used, HINT)
        del self._refused[credential]

    def _remember(self, credential: str, refusal: _Refusal) -> None:
        if len(self._refused) >= MAX_REMEMBERED:
            self._refused.clear()
        self._refused[credential] = refusal


async def _slots(request: Request) -> StreamSlots:
    slots: StreamSlots = request.app.state.stream_slots
    return slots


Slots = Annotated[StreamSlots, Depends(_slots)]


async def refuse_stream_again(slots: Slots, authorization: Authorization = None) -> None:
    """For `dependencies` of a route, which precede the sign-in."""
    slots.refuse_again(authorization or "")


async def refuse_wait_again(slots: Slots, authorization: Authorization = None, wait: WaitSeconds = None) -> None:
    """For `dependencies` of a route, which precede the sign-in."""
    if wait is not None:
        slots.refuse_again(authorization or "")


async def refuse_webhook_wait_again(slots: Slots, webhook_token: WebhookToken, wait: WaitSeconds = None) -> None:
    """For `dependencies` of a route, which precede the body."""
    if wait is not None:
        slots.refuse_again(webhook_token)


async def _stream_slot(
    user: AuthenticatedUser, slots: Slots, authorization: Authorization = None
) -> AsyncIterator[None]:
    """Held until the response has been sent."""
    with slots.take(user.id, user.plan, authorization or ""):
        yield


async def _wait_slot(
    user: AuthenticatedUser, slots: Slots, authorization: Authorization = None, wait: WaitSeconds = None
) -> AsyncIterator[None]:
    if wait is None:
        yield
    else:
        with slots.take(user.id, user.plan, authorization or ""):
            yield


async def _webhook_wait_slot(
    webhook_token: WebhookToken, call: ReceivedCall, sessions: Sessions, slots: Slots, wait: WaitSeconds = None
) -> AsyncIterator[None]:
    """Counted for the owner of the webhook. `call` is received before a session opens a connection."""
    if wait is None:
        yield
        return
    async with sessions.reading() as session:
        owner_id = (await read_webhook(session, webhook_token)).user_id
        plan = await read_plan(session, owner_id)
    with slots.take(owner_id, plan, webhook_token):
        yield


StreamSlot = Annotated[None, Depends(_stream_slot, scope="request")]
WaitSlot = Annotated[None, Depends(_wait_slot, scope="request")]
WebhookWaitSlot = Annotated[None, Depends(_webhook_wait_slot, scope="request")]
