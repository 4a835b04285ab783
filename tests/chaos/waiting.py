"""Waiting for conditions, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

LOOK_SECONDS = 0.01


async def until(what: str, condition: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Wait until the condition holds, and return the seconds that it took; `AssertionError` when it never does."""
    begun = time.monotonic()
    while not await condition():
        if time.monotonic() - begun > seconds:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic() - begun
