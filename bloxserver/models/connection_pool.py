"""The connection pool: tenants share the time of its connections."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import await_only

from bloxserver.fair_queue import FairQueue
from bloxserver.observability import metrics

current_tenant: ContextVar[Hashable] = ContextVar("tenant", default=None)
"""Whose work the current task does: the subject of a sign-in, the token of a webhook, or the id of a user. A task
without one, as each loop of the engine, is a tenant of its own.
"""

LONG_SECONDS = 0.05
"""A tenant that used connections for so much longer than its fair share waits for the next transactions of others."""
NEXT_SECONDS = 0.02
"""The time in which a task that has just ended a transaction may begin its next one."""
MAX_HELD_SECONDS = 0.1
"""How long one transaction waits for those that others have not begun yet."""


class ConnectionTurns:
    """Gives the connections of a pool to the tenants that wait for one, in the order of a `FairQueue`.

    With one connection, a long transaction can begin between two short ones of the same run, and delay each of them.
    So a tenant that used much more than its share waits for a moment after each transaction of another tenant. Disks
    do this as anticipatory scheduling.
    """

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._size = size
        self._clock = clock
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue(size, clock)
        self._short_until = -math.inf
        """Until when the next transaction of a tenant within its share is expected."""
        self._held_since: float | None = None
        self._held: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """The number of waiting tasks."""
        return len(self._waiting)

    def request(self, owner: Hashable) -> asyncio.Future[None]:
        """Ask for a connection. The result is set when the tenant may take one."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(owner, turn, self._size)
        self._advance()
        return turn

    async def wait(self, owner: Hashable, turn: asyncio.Future[None], seconds: float) -> None:
        """Wait for the tenant's turn. Raises `TimeoutError`."""
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.end(owner)
            else:
                self._waiting.remove(owner, turn)
            raise

    def end(self, owner: Hashable) -> None:
        """End a turn of the tenant."""
        self._waiting.done(owner)
        if self._size == 1 and self._waiting.excess(owner) < LONG_SECONDS:
            self._short_until = self._clock() + NEXT_SECONDS
        self._advance()

    def _advance(self) -> None:
        while not self._is_held() and (taken := self._waiting.take()) is not None:
            owner, turn = taken
            # A closed loop belongs to an earlier run of a program, for example to another test.
            if turn.done() or turn.get_loop().is_closed():
                self._waiting.done(owner)
            else:
                turn.set_result(None)

    def _is_held(self) -> bool:
        """Whether the next tenant has to wait for transactions that others have not begun yet."""
        if self._size > 1 or (tenant := self._waiting.next_tenant()) is None:
            return False
        if self._waiting.excess(tenant) < LONG_SECONDS:
            return False
        now = self._clock()
        if self._held_since is None:
            self._held_since = now
        until = min(self._short_until, self._held_since + MAX_HELD_SECONDS)
        if until <= now:
            self._held_since = None
            return False
        self._advance_at(until - now)
        return True

    def _advance_at(self, seconds: float) -> None:
        if self._held is not None:
            self._held.cancel()
        self._held = asyncio.get_running_loop().call_later(seconds, self._advance)


class ConnectionPool(AsyncAdaptedQueuePool):
    """Measures the wait for a connection. A tenant with many requests does not delay those of another."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._turns = ConnectionTurns(self.size())
        self._owners: dict[ConnectionPoolEntry, Hashable] = {}
        self._is_disposed = False

    def waiting(self) -> int:
        """Return the number of tasks that wait for a connection."""
        return len(self._turns)

    def connect(self) -> PoolProxiedConnection:
        started = time.perf_counter()
        try:
            return super().connect()
        finally:
            metrics.POOL_WAIT_SECONDS.labels(self.logging_name).observe(time.perf_counter() - started)

    def dispose(self) -> None:
        """Close the unused connections now, and each of the others when it is returned."""
        self._is_disposed = True
        super().dispose()

    def _do_get(self) -> ConnectionPoolEntry:
        owner = current_tenant.get() or asyncio.current_task()
        turn = self._turns.request(owner)
        if not turn.done():
            try:
                await_only(self._turns.wait(owner, turn, self.timeout()))
            except TimeoutError:
                raise PoolTimeout(f"no connection of {self.size()} was free in {self.timeout():g} s") from None
        try:
            entry = super()._do_get()
        except BaseException:
            self._turns.end(owner)
            raise
        self._owners[entry] = owner
        return entry

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        owner = self._owners.pop(record)
        super()._do_return_conn(record)
        self._turns.end(owner)
        if self._is_disposed:
            super().dispose()
