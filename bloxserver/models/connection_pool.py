"""The connection pool: tenants share the time of its connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
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


class ConnectionTurns:
    """Gives the connections of a pool to the tenants that wait for one, in the order of a `FairQueue`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue(size)

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
        self._advance()

    def _advance(self) -> None:
        while (taken := self._waiting.take()) is not None:
            owner, turn = taken
            # A closed loop belongs to an earlier run of a program, for example to another test.
            if turn.done() or turn.get_loop().is_closed():
                self._waiting.done(owner)
            else:
                turn.set_result(None)


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
