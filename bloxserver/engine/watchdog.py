"""Processes that observe the event loop of this process, and what they need from it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from bloxserver.engine import watchdog_process
from bloxserver.engine.watchdog_process import EXIT_SIGNAL, EventLoopCheckConfig, turn_interval
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

RETRY_SECONDS = 1
"""Pause before a process is restarted."""
END_SECONDS = 5


def check_config(settings: Settings, worker_id: str | None, *, kill: bool) -> EventLoopCheckConfig:
    """The configuration of the check of this process's event loop."""
    return {
        "process_id": os.getpid(),
        "worker_id": worker_id,
        "timeout_seconds": settings.event_loop_timeout,
        "kill": kill,
        "log_as_json": settings.is_production,
    }


class ObserverProcess:
    """A child process that observes the event loop: it receives a line for each turn. It is restarted if it ends.

    The child ends when its input closes, which happens when this process ends in any way.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        check: EventLoopCheckConfig,
        *,
        first_line: bytes = b"",
        on_output: Callable[[], None] = lambda: None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`on_output` is called for each line that the child writes."""
        self._name = name
        self._command = command
        self._kill = check["kill"]
        self._turn_seconds = turn_interval(check["timeout_seconds"])
        self._first_line = first_line
        self._on_output = on_output
        self._retry_seconds = retry_seconds
        self._process: Process | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the child and report the first turn, so that a loop that is blocked from now on is noticed."""
        if self._kill and os.getpid() == 1:
            exit_on_signal()
        await self._launch()
        self._running = asyncio.create_task(self._run())

    async def end(self) -> None:
        """End the child."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._end_process()  # again, because a task that was cancelled before it began has done nothing

    async def _launch(self) -> None:
        self._process = None
        try:
            self._process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE)
        except Exception as error:
            log.warning("child process not started", program=self._name, error=type(error).__name__)
        else:
            assert self._process.stdin is not None  # noqa: S101
            self._process.stdin.write(self._first_line + b"\n")

    async def _run(self) -> None:
        try:
            while True:
                if self._process is not None:
                    await self._attend(self._process)
                    log.warning("child process ended; restarting it", program=self._name)
                await asyncio.sleep(self._retry_seconds)
                await self._launch()
        finally:
            await self._end_process()

    async def _attend(self, process: Process) -> None:
        """Report turns to the child and receive its output; returns when it has ended."""
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        reporting = asyncio.create_task(_report_turns(process.stdin, self._turn_seconds))
        try:
            async for _ in process.stdout:
                self._on_output()
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
        await self._end_process()

    async def _end_process(self) -> None:
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def watchdog(settings: Settings, worker_id: str | None, *, kill: bool) -> ObserverProcess | None:
    """A process that only checks the event loop; None if that is disabled, or on Windows."""
    if not settings.event_loop_timeout or sys.platform == "win32":
        return None
    check = check_config(settings, worker_id, kill=kill)
    # -I and -S: without the paths of packages, it starts fast and imports nothing from the current directory.
    command = (sys.executable, "-I", "-S", watchdog_process.__file__, json.dumps(check))
    return ObserverProcess("watchdog", command, check)


def exit_on_signal() -> None:
    """Let `EXIT_SIGNAL` end this process, also while an extension written in C holds the interpreter lock.

    Python runs a handler of `signal.signal` only when it gets the interpreter lock, so the handler is a function of C.
    """
    import ctypes

    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(EXIT_SIGNAL, ctypes.cast(library._exit, ctypes.c_void_p))


async def _report_turns(turns: asyncio.StreamWriter, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        turns.write(b"\n")
        await turns.drain()
