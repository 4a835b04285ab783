"""Waits for the threads of SQLite connections."""

from __future__ import annotations

import asyncio
import threading


async def join_connection_threads() -> None:
    """Wait until the threads of SQLite connections have ended, for at most half a second each.

    The thread of a connection that failed to open, or was abandoned, ends later and then calls back into this event
    loop, which may be closed by then.
    """
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 0.5)
