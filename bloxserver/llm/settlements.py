"""Writes the ends of calls in groups: what arrives while a group is being written forms the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from bloxserver.models.transient_errors import describe_error, is_transient

log = structlog.stdlib.get_logger("bloxserver.llm")

Item = TypeVar("Item")

MAX_GROUP = 500
MAX_WAITING = 100_000
RETRY_SECONDS = 1.0


class GroupWriter(Generic[Item]):
    """Calls `write` with groups of items. Belongs to one event loop."""

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[None]],
        is_transient: Callable[[BaseException], bool] = is_transient,
    ) -> None:
        """A group that fails with a transient error is written again later."""
        self._write = write
        self._is_transient = is_transient
        self._waiting: list[Item] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, item: Item) -> None:
        """Have the item written soon. If writing fails for long, the oldest items are dropped and logged."""
        self._waiting.append(item)
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[0]
            log.error("the end of a language model call was not stored")
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write_all())

    async def flush(self) -> None:
        """Wait until all items are written, or cannot be written now."""
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=2 * RETRY_SECONDS)

    async def _write_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            try:
                await self._write(group)
            except Exception as error:
                if not self._is_transient(error):
                    log.error("ends of language model calls not stored", reason=describe_error(error), items=len(group))
                    continue
                log.warning("ends of language model calls not stored yet", reason=describe_error(error))
                self._waiting = group + self._waiting
                await asyncio.sleep(RETRY_SECONDS)
