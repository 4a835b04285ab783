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
from pathlib import Path
from typing import NoReturn

from bloxserver.isolation.functions import load
from bloxserver.isolation.task_process import NICENESS, serve

FORK, END = b"F", b"E"
NUMBER = struct.Struct("!q")
ANSWER = struct.Struct("!qd")
"""FORK: the id of the new process, or 0 if there is none. END: the wait status and the CPU time of the process."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
IGNORED = (signal.SIGINT, signal.SIGTERM)
"""A service manager sends them to all processes, and tasks may still run while the parent shuts down."""
REQUIRED = (signal.SIGALRM, signal.SIGPROF, signal.SIGCHLD)


def main(preloaded: list[str], rehearsed: dict[str, str]) -> None:
    """The program of the fork server. Its standard input is the connection."""
    _reset_signals()
    connection = socket.socket(fileno=os.dup(0))
    _redirect_to_null(0)
    for name in preloaded:
        import_module(name)
    for function, request in rehearsed.items():
        with suppress(Exception):  # a task reports it
            load(function)(request.encode())
    if sys.platform == "linux":
        # Processes that a task starts are reaped here if the process of the task ends before them.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    _lower_priority_of_session()
    gc.collect()
    gc.freeze()
    _answer_commands(connection)


def _lower_priority_of_session() -> None:
    """Give event loops precedence where the kernel schedules by session (autogroups), within which niceness counts."""
    with suppress(OSError):  # only on Linux, and only if the kernel has autogroups
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def _reset_signals() -> None:
    """Undo what the parent process has set, as far as limits depend on it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    for number in REQUIRED:
        signal.signal(number, signal.SIG_DFL)


def _redirect_to_null(*descriptors: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def _answer_commands(connection: socket.socket) -> None:
    children: set[int] = set()
    try:
        while True:
            command, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            if command == FORK:
                answer = ANSWER.pack(_fork(connection, descriptors, children), 0)
            elif command == END:
                child = NUMBER.unpack(connection.recv(NUMBER.size, socket.MSG_WAITALL))[0]
                answer = ANSWER.pack(*_end(child, children))
            else:
                return
            connection.sendall(answer)
    except ConnectionError:
        return
    finally:
        for child in [*children]:
            _end(child, children)


def _fork(connection: socket.socket, descriptors: list[int], children: set[int]) -> int:
    """Start a process that answers requests on the connection with this descriptor. Return its id; 0 if the system has
    no process or descriptor left.
    """
    if not descriptors:
        return 0
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:
        child = -1
    if child == 0:
        _run_child(connection, descriptors[0], parent)
    os.close(descriptors[0])
    if child < 0:
        return 0
    with suppress(OSError):
        os.setpgid(child, child)  # the child does it too: either of them may run first
    children.add(child)
    return child


def _run_child(connection: socket.socket, descriptor: int, parent: int) -> NoReturn:
    status = 1
    try:
        connection.close()
        os.setpgid(0, 0)
        _end_with_parent(parent)
        _redirect_to_null(1, 2)  # messages of libraries can contain data of users
        os.set_inheritable(descriptor, False)  # a process that the task starts must not keep the connection open
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


def _end(child: int, children: set[int]) -> tuple[int, float]:
    """Kill a process and those that it started. Return its wait status, and the CPU time of all of them.

    If the process is ending by itself, its wait status is not changed.
    """
    if child not in children:
        return 0, 0.0
    children.discard(child)
    # The process has not been reaped, so that no other process has its number.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    status, cpu_seconds = 0, 0.0
    with suppress(ChildProcessError):
        while True:
            number, its_status, usage = os.wait4(-child, 0)
            cpu_seconds += usage.ru_utime + usage.ru_stime
            if number == child:
                status = its_status
    return status, cpu_seconds
