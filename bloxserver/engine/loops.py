"""The loops of the engine: polling, waiting, and restarts after failures."""

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
    """Calls `poll` repeatedly: when woken, and after the number of seconds that the previous call returned.

    A call that fails is logged as `failure` and repeated after `retry_seconds`. Transient errors are not logged here,
    because `Database` logs a lost connection once for all loops.
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
        """Calls start at least `min_interval_seconds` apart. `jitter` is the random fraction of a pause."""
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
    """Run `loop` until cancelled. Restart it after any end, so that no part of the engine stops unnoticed."""
    while True:
        try:
            await loop()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of Rust extensions are not Exceptions
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            log.error("engine loop restarted", exc_info=error)
        await asyncio.sleep(again_seconds)


async def cancel(tasks: Iterable[asyncio.Task[Any]], *, again_seconds: float = RETRY_SECONDS) -> None:
    """Cancel tasks and wait until they have ended. A task that still runs after `again_seconds` is cancelled again."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_seconds)


async def wait_for_wake(woken: asyncio.Event, seconds: float) -> bool:
    """Wait up to `seconds` until `woken` is set, and clear it. Returns whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return False
    woken.clear()
    return True
