"""The process of a slot: it runs one task after the other."""

from __future__ import annotations

import os
import resource
import socket
import sys
from contextlib import suppress

from bloxserver.isolation.frames import MAX_RESPONSE_BYTES, Response, Status, receive_request, send_response
from bloxserver.isolation.functions import load
from bloxserver.isolation.limits import (
    MEBIBYTE,
    TaskLimits,
    address_space,
    apply_limits,
    cpu_seconds,
    disable_core_dumps,
    lift_limits,
)

NICENESS = 10
"""Event loops of the API and of workers take precedence over tasks."""
MAX_TASKS = 1_000
"""After this number, a new process replaces this one."""
MAX_GROWTH_BYTES = 64 * MEBIBYTE
"""A process whose memory a task has increased by more than this is replaced, to release the memory."""
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def serve(connection: socket.socket) -> None:
    """Answer requests until the other side closes the connection."""
    with suppress(OSError):
        os.nice(NICENESS)
    disable_core_dumps()
    idle_size, idle_memory = address_space(), _peak_memory()
    tasks = 0
    while (request := receive_request(connection)) is not None:
        tasks += 1
        status, used, body = _run(*request, idle_size)
        is_last = (
            status is Status.OUT_OF_MEMORY or tasks >= MAX_TASKS or _peak_memory() - idle_memory > MAX_GROWTH_BYTES
        )
        send_response(connection, Response(status, is_last, used, body))
        if is_last:
            return


def _run(function: str, limits: TaskLimits, request: bytes, idle_size: int | None) -> tuple[Status, float, bytes]:
    before = cpu_seconds()
    try:
        call = load(function)
        apply_limits(limits, idle_size)
        status, body = Status.DONE, call(request)
        if len(body) > MAX_RESPONSE_BYTES:
            status, body = Status.OUT_OF_MEMORY, b""
    except MemoryError:
        status, body = Status.OUT_OF_MEMORY, b""
    except BaseException as error:
        status, body = Status.FAILED, type(error).__name__.encode()
    finally:
        lift_limits(idle_size)
    return status, cpu_seconds() - before, body


def _peak_memory() -> int:
    """Return the largest resident memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
