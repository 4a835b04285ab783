"""The process that observes another process's event loop, and kills that process if the loop is blocked.

A thread could not do this: no thread of the process runs while a C extension holds the interpreter lock. On PostgreSQL,
the heartbeat process of a worker does it too. This module imports only small modules of the standard library, and runs
as a script without the package, so that the process takes 9 MB and starts in 25 ms.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypedDict

EXIT_SIGNAL = signal.SIGUSR2
"""Ends process 1 of a container; see `kill_parent`."""


def turn_interval(timeout_seconds: float) -> float:
    """How often the event loop reports a turn, in seconds."""
    return min(1.0, timeout_seconds / 4 or 1.0)


class BlockedTime:
    """The time for which an event loop has not turned, as far as this process ran too.

    While a whole machine or container is suspended, neither process runs: that does not count.
    """

    def __init__(self, interval_seconds: float, clock: Callable[[], float]) -> None:
        """`measure` is called every `interval_seconds` or more often."""
        self._longest_step = 2 * interval_seconds
        self._clock = clock
        self._measured_at = clock()
        self._seconds = 0.0

    def reset(self) -> None:
        """The event loop has turned, or its process is stopped by a signal or a debugger."""
        self._measured_at = self._clock()
        self._seconds = 0.0

    def measure(self) -> float:
        """Return the seconds since the last turn."""
        moment = self._clock()
        self._seconds += min(moment - self._measured_at, self._longest_step)
        self._measured_at = moment
        return self._seconds


class EventLoopCheckConfig(TypedDict):
    """The arguments of `EventLoopCheck`."""

    process_id: int
    worker_id: str | None
    timeout_seconds: float
    kill: bool
    log_as_json: bool


class EventLoopCheck:
    """Checks the event loop of the parent process."""

    def __init__(
        self,
        *,
        process_id: int,
        worker_id: str | None,
        timeout_seconds: float,
        kill: bool,
        log_as_json: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `kill`, a blocked event loop is only logged. A timeout of 0 disables the check."""
        self.interval_seconds = turn_interval(timeout_seconds)
        self.is_blocked = False
        """Whether the event loop had not turned for the timeout at the last check."""
        self._process_id = process_id
        self._worker_id = worker_id
        self._timeout_seconds = timeout_seconds
        self._kill = kill
        self._log_as_json = log_as_json
        self._blocked = BlockedTime(self.interval_seconds, clock)

    def note_turn(self) -> None:
        """The event loop has turned."""
        self._blocked.reset()
        self.is_blocked = False

    def check(self) -> None:
        """Check the event loop; to be called every `interval_seconds`. Exits this process if the parent has ended."""
        if os.getppid() != self._process_id:
            # Another child of the parent may have inherited the pipe, so that it stays open.
            os._exit(0)
        if not self._timeout_seconds:
            return
        if is_stopped(self._process_id):
            self._blocked.reset()
            return
        seconds = self._blocked.measure()
        if seconds < self._timeout_seconds:
            return
        if not self.is_blocked:
            self._log(seconds)
        self.is_blocked = True
        if self._kill:
            kill_parent(self._process_id)

    def _log(self, seconds: float) -> None:
        event = "event loop blocked; killing the process" if self._kill else "event loop blocked"
        fields: dict[str, object] = {"seconds": round(seconds), "process": self._process_id}
        if self._worker_id is not None:
            fields["worker"] = self._worker_id
        log_line("error", event, fields, as_json=self._log_as_json)


def log_line(level: str, event: str, fields: dict[str, object], *, as_json: bool) -> None:
    """Log one line to standard error, unless that would block: a full pipe may be what blocks the parent."""
    with suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, format_line(level, event, fields, as_json=as_json).encode())


def format_line(level: str, event: str, fields: dict[str, object], *, as_json: bool) -> str:
    """Return a line in the format of the other logs, without the libraries that write those."""
    moment = time.time()
    timestamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1_000_000):06}Z"
    logger = "bloxserver.engine"
    if as_json:
        line = {**fields, "event": event, "level": level, "logger": logger, "timestamp": timestamp}
        return json.dumps(line) + "\n"
    details = " ".join(f"{name}={value}" for name, value in sorted(fields.items()))
    return f"{timestamp} [{level:9}] {event:30} [{logger}] {details}\n"


def is_stopped(process_id: int) -> bool:
    """Whether a signal or a debugger has stopped the process. On other systems than Linux the answer is always no."""
    try:
        with open(f"/proc/{process_id}/stat") as file:  # pathlib would delay the start
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def kill_parent(process_id: int) -> None:
    """Kill the parent process, whose id is `process_id`. Does nothing if it has ended meanwhile.

    The kernel ignores signals to process 1 of a container that it does not handle, even SIGKILL, if they come from
    inside the container. Therefore such a process handles `EXIT_SIGNAL`.
    """
    number = EXIT_SIGNAL if process_id == 1 else signal.SIGKILL
    with suppress(OSError):  # it has ended
        try:
            descriptor = os.pidfd_open(process_id)
        except (AttributeError, OSError):  # not Linux, or forbidden
            if os.getppid() == process_id:
                os.kill(process_id, number)
            return
        # If it is the parent now, then its id had not been reused when the descriptor was opened.
        if os.getppid() == process_id:
            signal.pidfd_send_signal(descriptor, number)
        os.close(descriptor)


def main() -> None:
    """Observe the parent until the input ends, which happens when the parent ends."""
    # Ctrl+C and other signals that stop the parent may reach this process too: it continues during the shutdown.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    check = EventLoopCheck(**json.loads(sys.argv[1]))
    while True:
        if select.select([0], [], [], check.interval_seconds)[0]:
            if not os.read(0, 65536):
                return
            check.note_turn()
        check.check()


if __name__ == "__main__":
    main()
