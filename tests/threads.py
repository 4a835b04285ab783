"""Threads that the database's driver leaves behind."""

from __future__ import annotations

import asyncio
import threading


async def connection_threads_end() -> None:
    """Once no connection to SQLite has a thread: one that could not be opened, or was given up in the middle, ends its
    own later, and would still speak to this loop when it is closed. One that is in use is waited for half a second.
    """
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 0.5)
