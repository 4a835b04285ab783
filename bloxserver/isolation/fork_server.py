"""The fork server: it imports what tasks need once, and forks the processes that run them.

A fork takes milliseconds, and shares the memory of the imported modules. The fork server has one thread, so that a
fork is safe. It ends with the connection to the process that started it, and ends its processes first.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from bloxserver.isolation.functions import PRELOADED
from bloxserver.isolation.task_process import serve

FORK, KILL, REAP = b"F", b"K", b"R"
NUMBER = struct.Struct("!q")
PR_SET_PDEATHSIG = 1


def main() -> None:
    """The program of the fork server. Its standard input is the connection."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl+C reaches it too, while tasks may still run
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()
    _answer_commands(connection)


def _answer_commands(connection: socket.socket) -> None:
    children: set[int] = set()
    try:
        while True:
            command, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            if command == FORK and descriptors:
                answer = _fork(connection, descriptors[0])
                children.add(answer)
            elif command in (KILL, REAP):
                child = NUMBER.unpack(connection.recv(NUMBER.size, socket.MSG_WAITALL))[0]
                answer = _end(child, children, wait=command == REAP)
            else:
                return
            connection.sendall(NUMBER.pack(answer))
    except ConnectionError:
        return
    finally:
        for child in [*children]:
            _end(child, children, wait=False)


def _fork(connection: socket.socket, descriptor: int) -> int:
    """Start a process that answers requests on the connection with this descriptor. Return its id."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _run_child(connection, descriptor, parent)
    with suppress(OSError):
        os.setpgid(child, child)
    os.close(descriptor)
    return child


def _run_child(connection: socket.socket, descriptor: int, parent: int) -> NoReturn:
    status = 1
    try:
        connection.close()
        os.setpgid(0, 0)
        _end_with_parent(parent)
        serve(socket.socket(fileno=descriptor))
        status = 0
    finally:
        os._exit(status)


def _end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the fork server ends in any way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _end(child: int, children: set[int], *, wait: bool) -> int:
    """Kill a process and its own children; with `wait`, after it has ended by itself. Return its wait status."""
    if child not in children:
        return 0
    children.discard(child)
    if wait:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    # The process has not been reaped, so that no other process has its number.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]
