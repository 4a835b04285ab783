"""The process of a slot: it runs one task after the other."""

from __future__ import annotations

import os
import resource
import socket

from bloxserver.isolation.frames import MAX_RESPONSE_BYTES, Response, Status, receive_request, send_response
from bloxserver.isolation.functions import find_function
from bloxserver.isolation.limits import MEBIBYTE, TaskLimits, address_space, apply_limits, cpu_seconds, lift_limits

NICENESS = 10
"""Event loops of the API and of workers take precedence over tasks."""
MAX_TASKS = 1_000
"""After this number, a new process replaces this one."""
MAX_GROWTH_BYTES = 64 * MEBIBYTE
"""A process whose memory a task has increased by more than this is replaced, to release the memory."""


def serve(connection: socket.socket) -> None:
    """Answer requests until the other side closes the connection."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    idle_size, idle_memory = address_space(), _peak_memory()
    tasks = 0
    while (request := receive_request(connection)) is not None:
        tasks += 1
        status, used, body = _run(*request, idle_size)
        is_last = tasks >= MAX_TASKS or _peak_memory() - idle_memory > MAX_GROWTH_BYTES
        send_response(connection, Response(status, is_last, used, body))
        if is_last:
            return


def _run(function: str, limits: TaskLimits, request: bytes, idle_size: int | None) -> tuple[Status, float, bytes]:
    before = cpu_seconds()
    try:
        call = find_function(function)
        apply_limits(limits, idle_size)
        status, body = Status.DONE, call(request)
        if len(body) > MAX_RESPONSE_BYTES:
            status, body = Status.OUT_OF_MEMORY, b""
    except MemoryError:
        status, body = Status.OUT_OF_MEMORY, b""
    except BaseException as error:
        status, body = Status.FAILED, type(error).__name__.encode()
    finally:
        lift_limits()
    return status, cpu_seconds() - before, body


def _peak_memory() -> int:
    """Return the largest resident memory that this process had, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
