"""The fork server and the task processes, as seen from the process that uses them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

from bloxserver.isolation import fork_server
from bloxserver.isolation.errors import IsolationError, IsolationUnavailable, ResourceExceeded, TaskCrashed
from bloxserver.isolation.fork_server import ANSWER, NUMBER
from bloxserver.isolation.frames import Response, Status, receive, receive_response, send_request
from bloxserver.isolation.limits import TaskLimits
from bloxserver.settings import environment_without_settings

PROGRAM = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    f"from {fork_server.__name__} import main; main(**arguments)"
)
"""It imports from the same places as this process, and not from the current directory."""
ENVIRONMENT = {"TOKIO_WORKER_THREADS": "1"}
"""Libraries in Rust start a thread for each core by default, and many stacks exceed the limit of the address space."""
ANSWER_SECONDS = 60.0
"""The time for the fork server to answer. Before its first answer, it imports the preloaded modules."""
CLOSE_SECONDS = 5.0
"""The time for the fork server to end after its connection is closed."""
GRACE_SECONDS = 2.0
"""The time after its time limit until a process that the system has not ended is killed."""
RESOURCES: dict[int, Literal["cpu", "memory", "time"]] = {
    signal.SIGPROF: "cpu",
    signal.SIGALRM: "time",
    signal.SIGABRT: "memory",  # libraries that are not written in Python abort if no memory is left
}


class Ended(NamedTuple):
    """How a task process ended."""

    status: int
    """The wait status."""
    cpu_seconds: float
    """CPU time of the process and those that it started, since its start."""


class ForkServer:
    """A running fork server. Can be used by several threads. Its methods block: the event loop must not call them."""

    def __init__(self, preloaded: Sequence[str] = (), rehearsed: Mapping[str, bytes] | None = None) -> None:
        """Start it. Raises `OSError`."""
        self._lock = threading.Lock()
        self._connection, other = socket.socketpair()
        self._connection.settimeout(ANSWER_SECONDS)
        arguments = {
            "path": [os.path.abspath(directory) for directory in sys.path],
            "preloaded": [*preloaded],
            "rehearsed": {function: request.decode() for function, request in (rehearsed or {}).items()},
        }
        with other:
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-P", "-c", PROGRAM, json.dumps(arguments)],
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=environment_without_settings() | ENVIRONMENT,
                    start_new_session=True,
                )
            except BaseException:
                self._connection.close()
                raise
        self.pid = self._process.pid

    def fork(self) -> TaskProcess:
        """Start a task process. Raises `IsolationUnavailable` if the system has none left, and `OSError` or `EOFError`
        if the fork server has ended.
        """
        try:
            own, other = socket.socketpair()
        except OSError:
            raise IsolationUnavailable("no connection can be opened now") from None
        try:
            with other, self._lock:
                socket.send_fds(self._connection, [fork_server.FORK], [other.fileno()])
                number, _ = self._answer()
            if number == 0:
                raise IsolationUnavailable("no process can be started now")
        except BaseException:
            own.close()
            raise
        return TaskProcess(self, number, own)

    def end(self, number: int) -> Ended:
        """Kill a task process and those that it started, and wait for their end. Raises `OSError` or `EOFError` if the
        fork server has ended: then the system has killed the task process.
        """
        with self._lock:
            self._connection.sendall(fork_server.END + NUMBER.pack(number))
            return Ended(*self._answer())

    def close(self) -> None:
        """End the fork server and its processes."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # a thread that waits for an answer holds the lock
        with self._lock:
            self._connection.close()
            try:
                self._process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _answer(self) -> tuple[int, float]:
        number, cpu_seconds = ANSWER.unpack(receive(self._connection, ANSWER.size))
        return number, cpu_seconds


class TaskProcess:
    """One task process. Only one thread uses it, except for `kill`."""

    def __init__(self, server: ForkServer, number: int, connection: socket.socket) -> None:
        self.number = number
        self._server = server
        self._connection = connection
        self._lock = threading.Lock()
        self._cpu_seconds = 0.0
        self._is_running = False
        self._ended: Ended | None = None
        self.is_usable = True

    def run(self, function: str, limits: TaskLimits, request: bytes) -> Response:
        """Run a task. Raises `ResourceExceeded` and `TaskCrashed`; afterwards the process may no longer be usable."""
        self._is_running = True
        try:
            self._connection.settimeout(limits.seconds + GRACE_SECONDS)
            send_request(self._connection, function, limits, request)
            response = receive_response(self._connection)
        except (EOFError, OSError) as error:
            before = self._cpu_seconds
            ended = self.end()
            failure = ResourceExceeded("time") if isinstance(error, TimeoutError) else _error_of(ended.status)
            failure.cpu_seconds = max(0.0, ended.cpu_seconds - before)
            raise failure from None
        self._is_running = False
        self._cpu_seconds += response.cpu_seconds
        if response.is_last:
            self.end()
        if (failed := _failure_of(response)) is not None:
            failed.cpu_seconds = response.cpu_seconds
            raise failed
        return response

    def has_ended(self) -> bool:
        """Whether an idle process has ended."""
        poll = select.poll()  # select() accepts only the first 1,024 descriptors
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self) -> None:
        """Fail the running task. Any thread may call this; the one that runs the task then ends the process."""
        with self._lock:
            self.is_usable = False
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> Ended:
        """End the process and those that it started. Has no effect when repeated."""
        if self._ended is None:
            with self._lock:
                self.is_usable = False
                self._connection.close()
            try:
                self._ended = self._server.end(self.number)
            except (EOFError, OSError):
                self._ended = Ended(0, 0.0)
                if self._is_running:
                    _kill_orphans(self.number, self._server.pid)
        return self._ended


def _failure_of(response: Response) -> IsolationError | None:
    if response.status is Status.OUT_OF_MEMORY:
        return ResourceExceeded("memory")
    if response.status is Status.FAILED:
        return TaskCrashed(f"the task failed: {response.body.decode(errors='replace')[:100]}")
    return None


def _error_of(status: int) -> ResourceExceeded | TaskCrashed:
    """Return the error for the wait status of a process that has ended during a task."""
    if os.WIFSIGNALED(status) and (exceeded := RESOURCES.get(os.WTERMSIG(status))) is not None:
        return ResourceExceeded(exceeded)
    return TaskCrashed("the process of the task ended unexpectedly")


def _kill_orphans(group: int, session: int) -> None:
    """Kill what a task process has started, after it and the fork server were killed."""
    with suppress(ProcessLookupError, PermissionError):
        with suppress(ProcessLookupError):
            if os.getsid(group) != session:
                return  # another process has the number now
        os.killpg(group, signal.SIGKILL)
