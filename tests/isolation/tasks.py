"""Functions for task processes in these tests, and a pool that has them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

FUNCTIONS = {
    name: f"{__name__}:{name}"
    for name in (
        "abort",
        "allocate",
        "allocate_fast",
        "answer_much",
        "backtrack",
        "close_connection",
        "crash",
        "describe",
        "echo",
        "fail",
        "keep_memory",
        "loop",
        "sleep",
        "start_child",
        "use_cpu",
        "use_cpu_and_wait",
        "wait_for_pipe",
        "write_file",
    )
}


def echo(request: bytes) -> bytes:
    return request


def loop(request: bytes) -> bytes:
    while True:
        pass


def sleep(request: bytes) -> bytes:
    time.sleep(1_000)
    return b""


def backtrack(request: bytes) -> bytes:
    """Hold the interpreter in a C call that takes longer than any test."""
    re.match(r"(a+)+b", "a" * 60)
    return b""


def allocate(request: bytes) -> bytes:
    """Allocate memory in small objects."""
    kept = []
    while True:
        kept.append(bytes(1_000))


def allocate_fast(request: bytes) -> bytes:
    return bytes(1 << 36)


def keep_memory(request: bytes) -> bytes:
    """Use memory that the process keeps, below the limit."""
    return str(len(bytearray(80 * 1024 * 1024))).encode()


def answer_much(request: bytes) -> bytes:
    return bytes(int(request))


def fail(request: bytes) -> bytes:
    raise LookupError("secret")


def abort(request: bytes) -> bytes:
    os.abort()


def crash(request: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGSEGV)
    return b""


def close_connection(request: bytes) -> bytes:
    """Close all descriptors, and do not end."""
    os.closerange(3, 256)
    time.sleep(1_000)
    return b""


def use_cpu(request: bytes) -> bytes:
    """Use this many seconds of CPU time."""
    end = time.process_time() + float(request)
    while time.process_time() < end:
        pass
    return b""


def write_file(request: bytes) -> bytes:
    Path(request.decode()).touch()
    return b""


def use_cpu_and_wait(request: bytes) -> bytes:
    """Use 0.2 seconds, then write into the named pipe in the request."""
    use_cpu(b"0.2")
    Path(request.decode()).write_text("1")
    return sleep(b"")


def wait_for_pipe(request: bytes) -> bytes:
    """Return what another process writes into a named pipe."""
    return Path(request.decode()).read_bytes()


def start_child(request: bytes) -> bytes:
    """Start a process, write its id and that of this process into a named pipe, and do not end."""
    child = subprocess.Popen(["sleep", "1000"])
    Path(request.decode()).write_text(f"{child.pid} {os.getpid()}")
    return sleep(b"")


def describe(request: bytes) -> bytes:
    """Return what this process has from the processes that started it."""
    own = Path("/proc/self")
    described = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "niceness": os.nice(0),
        "environment": dict(os.environ),
        "descriptors": _descriptors(own),
        "parent_descriptors": _descriptors(Path(f"/proc/{os.getppid()}")),
        "parent_threads": len([*Path(f"/proc/{os.getppid()}/task").iterdir()]),
        "ignored": [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN],
    }
    return json.dumps(described).encode()


def _descriptors(process: Path) -> dict[str, str]:
    def read() -> Iterator[tuple[str, str]]:
        for descriptor in (process / "fd").iterdir():
            try:
                yield descriptor.name, os.readlink(descriptor)
            except OSError:
                continue  # the descriptor that lists the directory

    return dict(read())
