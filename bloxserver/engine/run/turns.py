"""Turns on the event loop: a tenant with a thousand steps that are ready does not delay the step of another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

STEPS_PER_TURN = 2


class Turns:
    """In each iteration of the event loop, `STEPS_PER_TURN` steps of each tenant may begin."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """The steps that wait, by tenant. A tenant without an entry may begin."""

    async def take(self, tenant: Hashable) -> None:
        """Wait for the tenant's turn. Steps of a tenant begin in the order of their calls."""
        waiting = self._waiting.get(tenant)
        loop = asyncio.get_running_loop()
        if waiting is None:
            self._waiting[tenant] = deque()
            loop.call_soon(self._advance, tenant)
            return
        turn = loop.create_future()
        waiting.append(turn)
        await turn

    def _advance(self, tenant: Hashable) -> None:
        waiting = self._waiting[tenant]
        begun = 0
        while waiting and begun < STEPS_PER_TURN:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                begun += 1
        if begun:
            asyncio.get_running_loop().call_soon(self._advance, tenant)
        else:
            del self._waiting[tenant]
