"""A timer that wakes the pump."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from bloxserver.clock import now


class WakeTimer:
    """Calls `wake` at the requested time or earlier.

    A pump requests a time in each iteration, usually a later one. A timer that is set already is kept, because setting
    one takes longer than an iteration in which nothing is due.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._handle: asyncio.Handle | None = None
        self._at = 0.0
        """When the handle calls. For a time that is now, the handle of uvloop is not a timer's and does not tell it."""

    def wake_by(self, until: datetime) -> None:
        """Call `wake` at this time, or earlier if an earlier time was requested before."""
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0.0, (until - now()).total_seconds())
        if self._handle is not None:
            if self._at <= at:
                return
            self._handle.cancel()
        self._handle, self._at = loop.call_at(at, self._call), at

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _call(self) -> None:
        self._handle = None
        self._wake()
