"""Functions that the isolation benchmark calls in processes of the pool."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from bloxserver.isolation.functions import find_function

FUNCTIONS = {name: f"{__name__}:{name}" for name in ("check_and_pause", "echo", "fork_server")}
PAUSE_SECONDS = 0.5
SNIPPET = b'{"code": "1", "values": {}, "timeout_seconds": 5, "memory_mb": 64}'


def echo(request: bytes) -> bytes:
    return request


def check_and_pause(request: bytes) -> bytes:
    """Check a definition and run a snippet, and return the memory of this process.

    A pause lets all processes be measured at the same time.
    """
    find_function("organism.check")(request)
    find_function("python.run")(SNIPPET)
    time.sleep(PAUSE_SECONDS)
    return json.dumps(memory_of(os.getpid())).encode()


def fork_server(request: bytes) -> bytes:
    return str(os.getppid()).encode()


def memory_of(process: int) -> dict[str, int]:
    """Return the fields of a process's memory in KiB; none if the system is not Linux."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
