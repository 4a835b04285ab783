"""The fork server and the task processes, as seen from the process that uses them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Literal

from bloxserver.isolation import fork_server
from bloxserver.isolation.errors import IsolationUnavailable, ResourceExceeded, TaskCrashed
from bloxserver.isolation.fork_server import NUMBER
from bloxserver.isolation.frames import Response, Status, receive_response, send_request
from bloxserver.isolation.limits import TaskLimits
from bloxserver.settings import environment_without_settings

PROGRAM = f"import sys; sys.path[:] = sys.argv[1:]; from {fork_server.__name__} import main; main()"
"""It imports from the same places as this process, and not from the current directory."""
GRACE_SECONDS = 2.0
"""The time after its time limit until a process that the system has not ended is killed."""
RESOURCES: dict[int, Literal["cpu", "memory", "time"]] = {
    signal.SIGPROF: "cpu",
    signal.SIGALRM: "time",
    signal.SIGABRT: "memory",  # libraries that are not written in Python abort if no memory is left
}


class ForkServer:
    """Starts the fork server on first use, and again when it has ended. Can be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def fork(self) -> TaskProcess:
        """Start a task process. Raises `IsolationUnavailable`."""
        own, other = socket.socketpair()
        with other:
            try:
                with self._lock:
                    number = self._command(fork_server.FORK, descriptor=other.fileno())
            except OSError:
                own.close()
                raise IsolationUnavailable("no process can be started now") from None
        return TaskProcess(self, number, own)

    def end(self, number: int, *, wait: bool) -> int:
        """Kill a task process, or wait until it has ended. Return its wait status; 0 if the fork server has ended."""
        with self._lock, suppress(OSError):
            if self._connection is not None:
                command = fork_server.REAP if wait else fork_server.KILL
                self._connection.sendall(command + NUMBER.pack(number))
                return self._answer(self._connection)
        return 0

    def close(self) -> None:
        """End the fork server and its processes."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _command(self, command: bytes, *, descriptor: int) -> int:
        connection = self._connection or self._start()
        try:
            socket.send_fds(connection, [command], [descriptor])
            return self._answer(connection)
        except OSError:
            self._close()
            raise

    @staticmethod
    def _answer(connection: socket.socket) -> int:
        answer = connection.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(answer) < NUMBER.size:
            raise ConnectionResetError
        number: int = NUMBER.unpack(answer)[0]
        return number

    def _start(self) -> socket.socket:
        own, other = socket.socketpair()
        with other:
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-P", "-c", PROGRAM, *sys.path],
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=environment_without_settings(),
                    start_new_session=True,
                )
            except BaseException:
                own.close()
                raise
        self._connection = own
        return own


class TaskProcess:
    """One task process. Only one thread uses it, except for `kill`."""

    def __init__(self, server: ForkServer, number: int, connection: socket.socket) -> None:
        self._server = server
        self._connection = connection
        self._lock = threading.Lock()
        self._number: int | None = number
        self.is_usable = True

    def run(self, function: str, limits: TaskLimits, request: bytes) -> Response:
        """Run a task. Raises `ResourceExceeded` and `TaskCrashed`; afterwards the process is no longer usable."""
        try:
            self._connection.settimeout(limits.seconds + GRACE_SECONDS)
            send_request(self._connection, function, limits, request)
            response = receive_response(self._connection)
        except TimeoutError:
            self.close()
            raise ResourceExceeded("time") from None
        except (EOFError, OSError):
            raise _error_of(self._end(wait=True)) from None
        if response.is_last:
            self._end(wait=True)
        if response.status is Status.OUT_OF_MEMORY:
            raise ResourceExceeded("memory")
        if response.status is Status.FAILED:
            raise TaskCrashed(f"the task failed: {response.body.decode(errors='replace')[:100]}")
        return response

    def kill(self) -> None:
        """End the process, also while another thread waits for its response."""
        self._end(wait=False)

    def close(self) -> None:
        """End the process. No other thread uses it."""
        self._end(wait=False)
        self._connection.close()

    def _end(self, *, wait: bool) -> int:
        with self._lock:
            number, self._number = self._number, None
            self.is_usable = False
        status = 0 if number is None else self._server.end(number, wait=wait)
        if wait:
            self._connection.close()
        else:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        return status


def _error_of(status: int) -> ResourceExceeded | TaskCrashed:
    """Return the error for the wait status of a process that has ended during a task."""
    if os.WIFSIGNALED(status) and (exceeded := RESOURCES.get(os.WTERMSIG(status))) is not None:
        return ResourceExceeded(exceeded)
    return TaskCrashed("the process of the task ended unexpectedly")
