"""Each user's share of the outgoing requests and name lookups of a worker."""

from __future__ import annotations

from asyncio import Semaphore
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from uuid import UUID
from weakref import WeakValueDictionary

from bloxserver.plans import Plan

Slot = Callable[[], AbstractAsyncContextManager[None]]
"""Opens a context that holds a slot, and waits for one first."""


@dataclass(frozen=True)
class Share:
    """The slots of one user. Without arguments, they are not limited."""

    request: Slot = nullcontext
    lookup: Slot = nullcontext


UNLIMITED = Share()


class UserSlots:
    """Slots that are counted for each user. Tasks of a user get them in order; users do not wait for each other."""

    def __init__(self) -> None:
        # An entry exists while a task holds a slot or waits for one.
        self._by_user: WeakValueDictionary[UUID, Semaphore] = WeakValueDictionary()

    def __len__(self) -> int:
        """Users who hold a slot or wait for one."""
        return len(self._by_user)

    @asynccontextmanager
    async def take(self, user_id: UUID, limit: int) -> AsyncIterator[None]:
        """Wait until fewer than `limit` slots of the user are in use, and hold one for the block."""
        slots = self._by_user.setdefault(user_id, Semaphore(limit))
        async with slots:
            yield


class OutgoingShares:
    """The shares of all users of a worker. They belong to one event loop."""

    def __init__(self) -> None:
        self._requests = UserSlots()
        self._lookups = UserSlots()

    def of(self, user_id: UUID, plan: Plan) -> Share:
        """Return the share of a user."""
        return Share(
            request=partial(self._requests.take, user_id, plan.outgoing_requests),
            lookup=partial(self._lookups.take, user_id, plan.name_lookups),
        )
