"""The loops of the engine: how they wait, and that they continue after a failure."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog

from bloxserver.models.transient_errors import is_transient

log = structlog.stdlib.get_logger("bloxserver.engine")

RETRY_SECONDS = 1.0
"""Pause before a loop that ended is started again, and before a task is cancelled a second time."""


class PollLoop:
    """Calls `poll` again and again: when woken, and after the seconds that the previous call returned.

    A call that fails is logged under `failure` and repeated after `retry_seconds`. The log has no entry where the
    database is unavailable: `Database` logs that once for all loops.
    """

    def __init__(
        self,
        poll: Callable[[], Awaitable[float]],
        *,
        failure: str,
        retry_seconds: float,
        first_pause_seconds: float = 0.0,
        min_interval_seconds: float = 0.0,
        jitter: float = 0.0,
    ) -> None:
        """Two calls start `min_interval_seconds` apart or more. `jitter` is the part of a pause that is random."""
        self._poll = poll
        self._failure = failure
        self._retry_seconds = retry_seconds
        self._first_pause_seconds = first_pause_seconds
        self._min_interval_seconds = min_interval_seconds
        self._jitter = jitter
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Poll now; to be called on the event loop."""
        self._woken.set()

    async def run(self) -> None:
        """Poll until cancelled."""
        pause = self._first_pause_seconds
        while True:
            spread = random.uniform(1 - self._jitter, 1 + self._jitter)  # noqa: S311
            await wait_for_wake(self._woken, pause * spread)
            started = time.monotonic()
            try:
                pause = await self._poll()
            except Exception as error:
                if not is_transient(error):
                    log.error(self._failure, exc_info=error)
                pause = self._retry_seconds
            await asyncio.sleep(max(0.0, started + self._min_interval_seconds - time.monotonic()))


async def run_forever(loop: Callable[[], Awaitable[None]], *, again_seconds: float = RETRY_SECONDS) -> None:
    """Run `loop` until cancelled, and start it again whatever ended it: no part of the engine may stop unnoticed."""
    while True:
        try:
            await loop()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of extensions in Rust are no Exceptions
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            log.error("engine loop restarted", exc_info=error)
        await asyncio.sleep(again_seconds)


async def cancel(tasks: Iterable[asyncio.Task[Any]], *, again_seconds: float = RETRY_SECONDS) -> None:
    """Cancel tasks and wait for their ends. A task that turned its cancellation into an error is cancelled again."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_seconds)


async def wait_for_wake(woken: asyncio.Event, seconds: float) -> bool:
    """Wait until `woken` is set, at most so many seconds, and clear it; returns whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return False
    woken.clear()
    return True
