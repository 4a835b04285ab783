"""Writes the ends of calls in groups."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import structlog

from bloxserver.models.transient_errors import describe_error, is_transient

log = structlog.stdlib.get_logger("bloxserver.llm")

Item = TypeVar("Item")

MAX_GROUP = 500
MAX_WAITING = 100_000
LINGER_SECONDS = 0.1
"""How long an item waits for others. A transaction for each call takes as much CPU time as the rest of the call."""
RETRY_SECONDS = 1.0
FLUSH_SECONDS = 2.0


class _Batch(Generic[Item]):
    """Items that wait until they are due."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.is_due = asyncio.Event()


class GroupWriter(Generic[Item]):
    """Calls `write` with groups of items, one group at a time. Belongs to one event loop."""

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[None]],
        is_transient: Callable[[BaseException], bool] = is_transient,
    ) -> None:
        """A group that fails with a transient error is written again later."""
        self._write = write
        self._is_transient = is_transient
        self._open: _Batch[Item] | None = None
        self._last: asyncio.Task[None] | None = None
        """Writes the newest batch, after those before it."""

    @property
    def is_idle(self) -> bool:
        """Whether all items are written."""
        return self._last is None or self._last.done()

    def put(self, item: Item, *, at_once: bool = False) -> None:
        """Have the item written within `LINGER_SECONDS`, or as soon as possible.

        If writing fails for long, the oldest items are dropped and logged.
        """
        if self._open is None:
            self._open = _Batch()
            self._last = asyncio.get_running_loop().create_task(self._write_batch(self._open, self._last))
        items = self._open.items
        items.append(item)
        if len(items) > MAX_WAITING:
            del items[0]
            log.error("the end of a language model call was not stored")
        if at_once or len(items) >= MAX_GROUP:
            self._open.is_due.set()

    async def flush(self) -> None:
        """Wait until the items until now are written, or cannot be written now."""
        if self._last is None or self._last.done():
            return
        if self._open is not None:
            self._open.is_due.set()
        await asyncio.wait([self._last], timeout=FLUSH_SECONDS)

    async def _write_batch(self, batch: _Batch[Item], before: asyncio.Task[None] | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await batch.is_due.wait()
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._open = None
        for start in range(0, len(batch.items), MAX_GROUP):
            await self._write_group(batch.items[start : start + MAX_GROUP])

    async def _write_group(self, group: Sequence[Item]) -> None:
        while True:
            try:
                await self._write(group)
            except Exception as error:
                if not self._is_transient(error):
                    log.error("ends of language model calls not stored", reason=describe_error(error), items=len(group))
                    return
                log.warning("ends of language model calls not stored yet", reason=describe_error(error))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return
