"""The loops of the engine: how they wait, for the clock or until somebody wakes them, and that they go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog

log = structlog.stdlib.get_logger("bloxserver.engine")

RETRY_SECONDS = 1.0
"""Before a loop that has ended is begun anew, or one that goes on is cancelled again."""


async def run_forever(loop: Callable[[], Awaitable[None]]) -> None:
    """Until cancelled, whatever ends the loop: nobody would notice that nothing is claimed or taken over any more."""
    while True:
        try:
            await loop()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of extensions in Rust are no Exceptions
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            log.error("a loop of the engine has ended, and is begun anew", exc_info=error)
        await asyncio.sleep(RETRY_SECONDS)


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait for their ends: again where a database that does not answer made one of it an error."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=RETRY_SECONDS)


async def wait_for_wake(woken: asyncio.Event, seconds: float) -> bool:
    """Wait until `woken` is set, and clear it, but no longer than so many seconds; returns whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return False
    woken.clear()
    return True
