"""The processes of the pool end with the process that started them, however that ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc and process descriptors")

PROGRAM = """
import asyncio, sys
from bloxserver.isolation.pool import Pool
from tests.isolation.tasks import FUNCTIONS

async def main():
    pool = Pool(3, functions=FUNCTIONS, preloaded=[], rehearsed={})
    if sys.argv[1] != "unclosed":
        import atexit
        atexit.register(pool.close)
    await pool.run("echo", b"", tenant="idle", share=2)
    work = [pool.run("start_child", path.encode(), tenant=path, share=2) for path in sys.argv[2:]]
    tasks = [asyncio.ensure_future(each) for each in work]
    await asyncio.to_thread(sys.stdin.readline)
    for task in tasks if sys.argv[1] == "cancel" else ():
        task.cancel()
    if sys.argv[1] == "exception":
        raise LookupError("the end")
    if sys.argv[1] == "exit":
        sys.exit(3)

asyncio.run(main())
"""


def all_descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *all_descendants(int(child))]
    return found


def have_ended(pidfds: list[int], seconds: float = 20) -> bool:
    """Whether all processes end within a time."""
    end = time.monotonic() + seconds
    return all(select.select([pidfd], [], [], max(0, end - time.monotonic()))[0] for pidfd in pidfds)


def end_normally(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()


def interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()


def interrupt_group(process: subprocess.Popen[bytes]) -> None:
    """What a terminal does on Ctrl+C."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("how", "end", "status"),
    [
        ("normally", end_normally, 0),
        ("unclosed", end_normally, 0),
        ("cancel", end_normally, 0),
        ("exception", end_normally, 1),
        ("exit", end_normally, 3),
        ("normally", terminate, -signal.SIGTERM),
        ("normally", interrupt, None),
        ("normally", interrupt_group, None),
        ("normally", kill, -signal.SIGKILL),
    ],
)
def test_no_process_is_left(
    tmp_path: Path, how: str, end: Callable[[subprocess.Popen[bytes]], None], status: int | None
) -> None:
    pipes = [tmp_path / "pipe1", tmp_path / "pipe2"]
    for pipe in pipes:
        os.mkfifo(pipe)
    arguments = [sys.executable, "-W", "error", "-c", PROGRAM, how, *map(str, pipes)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            started = {int(number) for pipe in pipes for number in pipe.read_text().split()}
            found = all_descendants(process.pid)
            # A fork server, an idle process or one more, two tasks and their children.
            assert started <= set(found)
            assert len(found) >= 5
            pidfds = [os.pidfd_open(pid) for pid in found]
            end(process)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert status is None or process.returncode == status
    assert "ResourceWarning" not in errors.decode()
    assert have_ended(pidfds)
    for pidfd in pidfds:
        os.close(pidfd)
