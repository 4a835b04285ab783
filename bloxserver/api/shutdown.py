"""The shutdown state of the server. Open responses end when a shutdown is requested, so that they do not delay it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Shutdown:
    """The shutdown state of a server."""

    def __init__(self) -> None:
        self._requested = False
        self._callbacks: set[Callable[[], None]] = set()

    @property
    def requested(self) -> bool:
        return self._requested

    def request(self) -> None:
        """End open responses as soon as possible."""
        self._requested = True
        for callback in [*self._callbacks]:
            callback()

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call `callback` when a shutdown is requested, in the thread that requests it, or in a signal handler."""
        self._callbacks.add(callback)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within the block, SIGINT and SIGTERM request a shutdown. Then the server's own handler runs.

        ASGI notifies an application of a shutdown only after its open responses have ended. Only the main thread can
        handle signals; in other threads this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        installed = {number: self._install(number) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, (previous, handler) in installed.items():
                if signal.getsignal(number) is handler:
                    signal.signal(number, previous)

    def _install(self, number: signal.Signals) -> tuple[Handler, Handler]:
        previous = signal.getsignal(number)
        if not callable(previous):
            return previous, previous  # the default action ends the process at once

        def handle(received: int, frame: FrameType | None) -> None:
            self.request()
            previous(received, frame)

        signal.signal(number, handle)
        return previous, handle
