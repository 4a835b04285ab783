"""Whether the server was asked to stop: responses that stay open end then, instead of delaying the stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Shutdown:
    """The state of one server; `requested` turns true once."""

    def __init__(self) -> None:
        self._requested = False

    @property
    def requested(self) -> bool:
        return self._requested

    def request(self) -> None:
        """End open responses as soon as possible."""
        self._requested = True

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within the block, a signal that stops the server is a request too; the server's own handler runs as well.

        ASGI tells an application about a stop only after its open responses have ended. Signals can be handled in the
        main thread only; elsewhere this does nothing.
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
            return previous, previous  # the system's default action ends the process at once

        def handle(received: int, frame: FrameType | None) -> None:
            self.request()
            previous(received, frame)

        signal.signal(number, handle)
        return previous, handle
