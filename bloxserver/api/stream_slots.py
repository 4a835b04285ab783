"""Limits of concurrent event streams and `?wait` requests, for each user and for the process."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request

from bloxserver.api.dependencies import AuthenticatedUser, Sessions, WaitSeconds, WebhookInput, WebhookToken
from bloxserver.errors import LimitReached, Unavailable
from bloxserver.plans import Plan
from bloxserver.queries.triggers import read_webhook
from bloxserver.queries.users import read_plan

MAX_STREAMS = 5_000
"""Streams of a process. From then on, users may hold equal shares of them."""
HINT = (
    "Close streams that are no longer needed, poll the execution, "
    "or upgrade your plan. The limit applies to each server process."
)


class StreamSlots:
    """The streams that are open on this process, by user."""

    def __init__(self, maximum: int = MAX_STREAMS) -> None:
        self._maximum = maximum
        self._open: Counter[UUID] = Counter()

    @contextmanager
    def take(self, user_id: UUID, plan: Plan) -> Iterator[None]:
        """Count one stream within the block. Raises `LimitReached` (`streams`), or `Unavailable` on a full process."""
        used = self._open[user_id]
        if used >= plan.streams:
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


def _slots(request: Request) -> StreamSlots:
    slots: StreamSlots = request.app.state.stream_slots
    return slots


Slots = Annotated[StreamSlots, Depends(_slots)]


async def _stream_slot(user: AuthenticatedUser, slots: Slots) -> AsyncIterator[None]:
    """Held until the response has been sent."""
    with slots.take(user.id, user.plan):
        yield


async def _wait_slot(user: AuthenticatedUser, slots: Slots, wait: WaitSeconds = None) -> AsyncIterator[None]:
    if wait is None:
        yield
    else:
        with slots.take(user.id, user.plan):
            yield


async def _webhook_wait_slot(
    webhook_token: WebhookToken, body: WebhookInput, sessions: Sessions, slots: Slots, wait: WaitSeconds = None
) -> AsyncIterator[None]:
    """Counted for the owner of the webhook. `body` is received before a session opens a connection."""
    if wait is None:
        yield
        return
    async with sessions.reading() as session:
        owner_id = (await read_webhook(session, webhook_token)).user_id
        plan = await read_plan(session, owner_id)
    with slots.take(owner_id, plan):
        yield


StreamSlot = Annotated[None, Depends(_stream_slot, scope="request")]
WaitSlot = Annotated[None, Depends(_wait_slot, scope="request")]
WebhookWaitSlot = Annotated[None, Depends(_webhook_wait_slot, scope="request")]
