"""The check of an event loop, with a clock of the test, and the watchdog process with real parents."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from bloxserver.engine import watchdog_process
from bloxserver.engine.watchdog_process import BlockedTime, EventLoopCheck, format_line, is_stopped, turn_interval

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the system has no /proc")


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class TestBlockedTime:
    def test_time_without_a_turn_is_counted(self) -> None:
        clock = Clock()
        blocked = BlockedTime(1, clock)
        for _ in range(30):
            clock.seconds += 1
            blocked.measure()
        assert blocked.measure() == 30

    def test_a_turn_resets_the_time(self) -> None:
        clock = Clock()
        blocked = BlockedTime(1, clock)
        clock.seconds += 1.5
        assert blocked.measure() == 1.5
        clock.seconds += 1
        blocked.reset()
        clock.seconds += 0.5
        assert blocked.measure() == 0.5

    def test_time_in_which_this_process_was_suspended_too_is_not_counted(self) -> None:
        clock = Clock()
        blocked = BlockedTime(1, clock)
        clock.seconds += 3600
        assert blocked.measure() == 2
        clock.seconds += 1
        assert blocked.measure() == 3


@pytest.mark.parametrize(("timeout", "interval"), [(30, 1), (4, 1), (1, 0.25), (0, 1)])
def test_a_loop_reports_several_turns_within_the_timeout(timeout: float, interval: float) -> None:
    assert turn_interval(timeout) == interval


class TestEventLoopCheck:
    def test_a_blocked_loop_is_logged_once_until_it_turns(self, capfd: pytest.CaptureFixture[str]) -> None:
        clock = Clock()
        check = of_parent(clock, timeout_seconds=4)
        assert [step(check, clock) for _ in range(6)] == [False, False, False, True, True, True]
        (line,) = capfd.readouterr().err.splitlines()
        assert "event loop blocked" in line
        assert f"process={os.getppid()} seconds=4 worker=w-1" in line
        check.note_turn()
        assert [step(check, clock) for _ in range(4)] == [False, False, False, True]
        assert len(capfd.readouterr().err.splitlines()) == 1

    def test_a_timeout_of_zero_disables_it(self, capfd: pytest.CaptureFixture[str]) -> None:
        clock = Clock()
        check = of_parent(clock, timeout_seconds=0)
        assert {step(check, clock) for _ in range(1000)} == {False}
        assert capfd.readouterr().err == ""


def of_parent(clock: Clock, timeout_seconds: float) -> EventLoopCheck:
    return EventLoopCheck(
        process_id=os.getppid(),
        worker_id="w-1",
        timeout_seconds=timeout_seconds,
        kill=False,
        log_as_json=False,
        clock=clock,
    )


def step(check: EventLoopCheck, clock: Clock) -> bool:
    """Check after one interval; returns whether the loop is blocked."""
    clock.seconds += check.interval_seconds
    check.check()
    return check.is_blocked


def test_lines_in_production_are_json() -> None:
    line = format_line("error", "event loop blocked", {"seconds": 30, "process": 1}, as_json=True)
    assert line.endswith("\n")
    fields = json.loads(line)
    assert fields.pop("timestamp").endswith("Z")
    assert fields == {
        "event": "event loop blocked",
        "level": "error",
        "logger": "bloxserver.engine",
        "process": 1,
        "seconds": 30,
    }


PARENT = """
import ctypes, json, os, signal, subprocess, sys
program, how, config = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
config["process_id"] = os.getpid()
reading, writing = os.pipe()
if how == "cannot write":
    os.set_blocking(2, False)
    try:
        while os.write(2, bytes(4096)): pass
    except BlockingIOError:
        os.set_blocking(2, True)
child = subprocess.Popen([sys.executable, "-I", "-S", program, json.dumps(config)], stdin=reading)
os.close(reading)
if how == "has another child":
    subprocess.Popen(["cat"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[writing])
print(child.pid, flush=True)
if how == "ends":
    sys.exit()
if how == "is stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
ctypes.PyDLL(None).sleep(60)
"""
"""Starts a watchdog process, writes its id, and holds the interpreter lock. Its event loop never turns."""


@contextmanager
def parent(how: str, *, timeout_seconds: float = 0.2, kill: bool = True) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has a watchdog process, and the id of the latter. Both write to the same pipes."""
    config = {"worker_id": "w-1", "timeout_seconds": timeout_seconds, "kill": kill, "log_as_json": True}
    with subprocess.Popen(
        [sys.executable, "-I", "-c", PARENT, watchdog_process.__file__, how, json.dumps(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, int(output(process).readline())
        finally:
            process.kill()


def output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def wait_for_all_ends(process: subprocess.Popen[str]) -> None:
    """Wait until the process and its watchdog process have ended."""
    assert next_line(output(process)) == ""


def logged(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stderr is not None
    fields: dict[str, Any] = json.loads(next_line(process.stderr))
    return fields


def next_line(pipe: IO[str]) -> str:
    """The next line, or an empty text at the end; fails after a time instead of waiting for ever."""
    assert select.select([pipe], [], [], 20)[0]
    return pipe.readline()


class TestProcess:
    def test_a_parent_whose_loop_is_blocked_is_killed(self) -> None:
        with parent("is blocked") as (process, _):
            assert process.wait(20) == -signal.SIGKILL
            wait_for_all_ends(process)
            line = logged(process)
        assert (line["event"], line["worker"]) == ("event loop blocked; killing the process", "w-1")

    def test_a_parent_whose_output_is_full_is_killed(self) -> None:
        with parent("cannot write") as (process, _):
            assert process.wait(20) == -signal.SIGKILL
            wait_for_all_ends(process)

    @linux_only
    def test_without_kill_it_is_logged_and_the_parent_continues(self) -> None:
        with parent("is blocked", kill=False) as (process, watchdog):
            assert logged(process)["event"] == "event loop blocked"
            wait_for_checks(watchdog)
            assert process.poll() is None
            process.kill()
            wait_for_all_ends(process)

    @linux_only
    def test_a_stopped_parent_is_not_killed(self) -> None:
        with parent("is stopped") as (process, watchdog):
            wait_for_checks(watchdog)
            assert state_of(process.pid) == "T"
            assert process.poll() is None
            process.send_signal(signal.SIGCONT)
            assert process.wait(20) == -signal.SIGKILL

    @pytest.mark.parametrize("how", ["ends", "has another child"])
    def test_it_ends_with_its_parent(self, how: str) -> None:
        """The other child inherits the pipe to the watchdog process, which then stays open."""
        with parent(how, timeout_seconds=2) as (process, _):
            if how != "ends":
                process.kill()
            wait_for_all_ends(process)

    @linux_only
    def test_signals_for_the_parent_do_not_end_it(self) -> None:
        with parent("is blocked", timeout_seconds=0.8, kill=False) as (process, watchdog):
            wait_until_started(watchdog)
            os.kill(watchdog, signal.SIGINT)
            os.kill(watchdog, signal.SIGTERM)
            assert logged(process)["event"] == "event loop blocked"
            process.kill()
            wait_for_all_ends(process)


def wait_for_checks(process_id: int) -> None:
    """Wait until the watchdog process, once started, has waited for its input ten times: once for each check."""
    wait_until_started(process_id)
    before = int(status_of(process_id, "voluntary_ctxt_switches"))
    while int(status_of(process_id, "voluntary_ctxt_switches")) < before + 10:
        time.sleep(0.01)


def wait_until_started(process_id: int) -> None:
    """Wait until the watchdog process ignores signals, which it does first."""
    ignored = 1 << signal.SIGTERM - 1
    while not int(status_of(process_id, "SigIgn"), 16) & ignored:
        time.sleep(0.01)


def status_of(process_id: int, name: str) -> str:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)[name]


def state_of(process_id: int) -> str:
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]


TRACED = "import ctypes, os, signal; ctypes.CDLL(None).ptrace(0) and os._exit(3); os.kill(os.getpid(), signal.SIGSTOP)"
"""Lets its parent trace it, as a debugger does, and stops. Exits if the system forbids that."""


@linux_only
def test_a_process_at_a_breakpoint_is_stopped() -> None:
    traced = os.posix_spawn(sys.executable, [sys.executable, "-I", "-c", TRACED], {})
    _, status = os.waitpid(traced, os.WUNTRACED)
    if os.WIFEXITED(status):
        pytest.skip("the system forbids ptrace")
    try:
        assert state_of(traced) == "t"
        assert is_stopped(traced)
        assert not is_stopped(os.getpid())
    finally:
        os.kill(traced, signal.SIGKILL)
        os.waitpid(traced, 0)
    assert not is_stopped(traced)
