"""Waits for conditions with a timeout."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.01


async def wait_until(event: str, condition: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Wait until the condition is true; returns the seconds. Raises `AssertionError` after the timeout."""
    started = time.monotonic()
    while not await condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"timed out after {seconds:g} s waiting for {event}")
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - started
