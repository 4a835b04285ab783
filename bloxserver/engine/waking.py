"""How the loops of the engine wait: for the clock, or until somebody wakes them."""

from __future__ import annotations

import asyncio


async def wait_for_wake(woken: asyncio.Event, seconds: float) -> bool:
    """Wait until `woken` is set, and clear it, but no longer than so many seconds; returns whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return False
    woken.clear()
    return True
