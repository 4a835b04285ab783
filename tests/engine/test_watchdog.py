"""Processes that observe the event loop: their start, restart and end, and the end of a process that is blocked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bloxserver.engine import watchdog_process
from bloxserver.engine.engine import Engine
from bloxserver.engine.queue.heartbeat import PROGRAM
from bloxserver.engine.watchdog import ObserverProcess, check_config, watchdog
from bloxserver.models.database import Database
from bloxserver.settings import Settings

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the system has no /proc")

ECHO = "import os, sys\nfor line in sys.stdin: print(os.getpid(), line.strip(), flush=True)"


def settings_with(timeout: float) -> Settings:
    return Settings(event_loop_timeout=timeout)


class Echo:
    """An observer process that answers each line."""

    def __init__(self) -> None:
        self._answered = asyncio.Event()
        self.process = ObserverProcess(
            "echo",
            (sys.executable, "-I", "-c", ECHO),
            check_config(settings_with(0.2), None, kill=False),
            first_line=b"configuration",
            on_output=self._answered.set,
            retry_seconds=0.01,
        )

    async def next_answer(self) -> None:
        self._answered.clear()
        async with asyncio.timeout(20):
            await self._answered.wait()


@linux_only
async def test_each_turn_is_reported_until_the_end() -> None:
    echo = Echo()
    await echo.process.start()
    for _ in range(3):
        await echo.next_answer()
    assert len(children("-c", ECHO)) == 1
    await echo.process.end()
    assert children("-c", ECHO) == {}


@linux_only
def test_a_process_ends_with_the_event_loop() -> None:
    async def start_only() -> None:
        await Echo().process.start()
        await asyncio.sleep(0)

    asyncio.run(start_only())
    assert children("-c", ECHO) == {}


@linux_only
async def test_a_process_that_ends_is_restarted() -> None:
    echo = Echo()
    await echo.process.start()
    await echo.next_answer()
    (first,) = children("-c", ECHO)
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(20):
        while not children("-c", ECHO).keys() - {first}:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)
    await echo.next_answer()
    assert first not in children("-c", ECHO)
    await echo.process.end()


async def test_a_process_that_cannot_be_started_stops_nothing() -> None:
    process = ObserverProcess("x", ("/no/such/program",), check_config(settings_with(1), None, kill=False))
    with capture_logs() as logs:
        await process.start()
        await process.end()
    assert "child process not started" in [line["event"] for line in logs]


async def test_a_timeout_of_zero_starts_no_process() -> None:
    assert watchdog(settings_with(0), None, kill=True) is None


@linux_only
@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("run_worker", [False, True])
async def test_every_engine_has_one_process_that_checks_its_event_loop(
    live_settings: Settings, live_database: Database, run_worker: bool, kill: bool
) -> None:
    engine = Engine(live_settings, live_database, run_worker=run_worker, kill_when_blocked=kill)
    await engine.start()
    heartbeats = children("-c", PROGRAM)
    watchdogs = [json.loads(arguments[-1]) for arguments in children(watchdog_process.__file__).values()]
    await engine.stop()
    assert {*children(watchdog_process.__file__), *children("-c", PROGRAM)} == set()
    if run_worker and not live_settings.uses_sqlite:
        assert (len(heartbeats), watchdogs) == (1, [])
    else:
        worker_id = engine.worker_id if run_worker else None
        expected = {"process_id": os.getpid(), "worker_id": worker_id, "timeout_seconds": 30, "kill": kill}
        assert heartbeats == {}
        assert watchdogs == [{**expected, "log_as_json": False}]


def children(*arguments: str) -> dict[int, list[str]]:
    """The command lines of the child processes of this process that have these arguments, by process id."""
    found: dict[int, list[str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process may have ended
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            given = (process / "cmdline").read_text().removesuffix("\0").split("\0")
            if parent == os.getpid() and set(arguments) <= set(given):
                found[int(process.name)] = given
    return found


BLOCKED = """
import asyncio, ctypes, sys
sys.path[:] = sys.argv[1:]
from bloxserver.engine.watchdog import watchdog
from bloxserver.settings import Settings

async def main():
    await watchdog(Settings(event_loop_timeout=0.5), None, kill=True).start()
    ctypes.PyDLL(None).sleep(60)

asyncio.run(main())
"""
"""Starts its watchdog process, and then holds the interpreter lock."""


def run_blocked(*prefix: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-P", "-c", BLOCKED, *sys.path]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, **options)


def test_a_process_whose_loop_is_blocked_is_killed() -> None:
    process = run_blocked()
    assert process.returncode == -signal.SIGKILL
    assert process.stderr.count("event loop blocked; killing the process") == 1


@linux_only
def test_process_1_of_a_container_ends_too() -> None:
    """The kernel does not let it be killed from inside the container."""
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    try:
        allowed = subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("the system has no unshare, or forbids it")
    process = run_blocked(*unshare)
    assert process.returncode == watchdog_process.EXIT_SIGNAL
    assert "process=1 " in process.stderr
