"""The process pool: a fixed number of processes for the tasks of all tenants of this process."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import lru_cache, partial
from typing import NamedTuple

import structlog

from bloxserver.fair_queue import FairQueue
from bloxserver.isolation.errors import IsolationError, IsolationUnavailable, RequestTooLarge, TaskCrashed
from bloxserver.isolation.functions import FUNCTIONS, PRELOADED, REHEARSED
from bloxserver.isolation.limits import CpuTime, TaskLimits
from bloxserver.isolation.processes import ForkServer, TaskProcess
from bloxserver.plans import FREE
from bloxserver.settings import get_settings

log = structlog.stdlib.get_logger("bloxserver.isolation")

MAX_WAITING = 1_000
"""The maximum number of waiting tasks of a tenant."""
DEFAULT_LIMITS = TaskLimits()
IDLE_SECONDS = 60.0
"""The time after which a process without a task ends."""
CLOSE_SECONDS = 5.0
"""The time for the threads to end."""
KILL_SECONDS = 1.0
"""The time for the process of a cancelled task to end. Then its CPU time is known."""


class TaskResult(NamedTuple):
    body: bytes
    cpu_seconds: float
    """The CPU time of the task."""


async def isolated(
    function: str,
    request: bytes,
    *,
    tenant: Hashable,
    share: int = FREE.isolated_tasks,
    limits: TaskLimits = DEFAULT_LIMITS,
    max_bytes: int | None = None,
    cpu: CpuTime | None = None,
) -> TaskResult:
    """Run a function of `functions.FUNCTIONS` in another process.

    `share` is the number of tasks of this tenant that may run at once. `max_bytes` is the maximum size of the request;
    by default `MAX_BODY_BYTES`. The CPU time of the task is added to `cpu`. A cancelled task is killed. Raises
    `IsolationError`.
    """
    allowed = get_settings().max_body_bytes if max_bytes is None else max_bytes
    if len(request) > allowed:
        raise RequestTooLarge(f"the request has more than {allowed} bytes")
    return await _pool().run(function, request, tenant=tenant, share=share, limits=limits, cpu=cpu)


class _Task:
    def __init__(self, tenant: Hashable, function: str, request: bytes, limits: TaskLimits) -> None:
        self.tenant = tenant
        self.function = function
        self.request = request
        self.limits = limits
        self.future: Future[TaskResult] = Future()
        self.process: TaskProcess | None = None
        self.is_cancelled = False


class Pool:
    """Runs tasks in up to `size` processes. One thread for each process waits for its responses."""

    def __init__(
        self,
        size: int,
        *,
        functions: Mapping[str, str] = FUNCTIONS,
        preloaded: Sequence[str] = PRELOADED,
        rehearsed: Mapping[str, bytes] = REHEARSED,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._size = size
        self._functions = functions
        self._preloaded = preloaded
        self._rehearsed = rehearsed
        self._idle_seconds = idle_seconds
        self._server: ForkServer | None = None
        self._server_lock = threading.Lock()
        self._queue: FairQueue[_Task] = FairQueue(size)
        # This lock is held for microseconds only, because the event loop takes it.
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._running: set[_Task] = set()
        self._idle = 0
        self._is_closed = False

    async def run(
        self,
        function: str,
        request: bytes,
        *,
        tenant: Hashable,
        share: int,
        limits: TaskLimits = DEFAULT_LIMITS,
        cpu: CpuTime | None = None,
    ) -> TaskResult:
        """See `isolated`."""
        task = _Task(tenant, self._functions[function], request, limits)
        self._submit(task, share)
        ended = asyncio.wrap_future(task.future)
        ended.add_done_callback(partial(_add_cpu_time, cpu or CpuTime()))
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            self._cancel(task)
            await asyncio.wait([ended], timeout=KILL_SECONDS)
            raise
        except GeneratorExit:
            self._cancel(task)
            raise

    def close(self) -> None:
        """End all processes. Running and waiting tasks fail."""
        with self._changed:
            self._is_closed = True
            for task in self._running:
                if task.process is not None:
                    task.process.kill()
            self._changed.notify_all()
            threads = [*self._threads]
        for thread in threads:
            thread.join(CLOSE_SECONDS)
        with self._server_lock:
            if self._server is not None:
                self._server.close()
                self._server = None

    def _submit(self, task: _Task, share: int) -> None:
        with self._changed:
            if self._is_closed:
                raise IsolationUnavailable("the process pool is closed")
            if self._queue.waiting(task.tenant) >= MAX_WAITING:
                raise IsolationUnavailable(f"{MAX_WAITING} tasks wait already: run fewer at once")
            self._queue.put(task.tenant, task, share)
            self._changed.notify()
            if len(self._queue) > self._idle and len(self._threads) < self._size:
                self._start_thread(task)

    def _start_thread(self, task: _Task) -> None:
        thread = threading.Thread(target=self._serve, name="isolation", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            if not self._threads:
                self._queue.remove(task.tenant, task)
                raise IsolationUnavailable("no thread can be started now") from None

    def _cancel(self, task: _Task) -> None:
        """Remove a waiting task, or kill the process of a running one."""
        with self._changed:
            task.is_cancelled = True
            if self._queue.remove(task.tenant, task):
                task.future.cancel()
            elif task.process is not None:
                task.process.kill()

    def _serve(self) -> None:
        """Run tasks in one process until there are none for a while."""
        process: TaskProcess | None = None
        try:
            while (task := self._take()) is not None:
                try:
                    process = self._run(task, process)
                finally:
                    with self._changed:
                        self._running.discard(task)
                        self._queue.done(task.tenant)
                        self._changed.notify()
        finally:
            if process is not None:
                process.end()
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _take(self) -> _Task | None:
        """Wait for the next task. Return None if there is none for a while: then the thread must end."""
        with self._changed:
            is_late = False
            while (taken := self._queue.take()) is None:
                if is_late or self._is_closed:
                    # No other thread may count on this one from now on.
                    self._threads.discard(threading.current_thread())
                    return None
                self._idle += 1
                is_late = not self._changed.wait(self._idle_seconds)
                self._idle -= 1
            self._running.add(taken[1])
            return taken[1]

    def _run(self, task: _Task, process: TaskProcess | None) -> TaskProcess | None:
        """Run a task in this process, or in a new one. Return the process if it can run another task."""
        try:
            if process is None or process.has_ended():
                if process is not None:
                    process.end()
                process = self._fork()
            with self._changed:
                task.process = process
                if task.is_cancelled or self._is_closed:
                    raise IsolationUnavailable("the process pool is closed")
            response = process.run(task.function, task.limits, task.request)
        except IsolationError as error:
            _resolve(task.future, error)
        except Exception as error:
            log.exception("task of the process pool failed unexpectedly")
            _resolve(task.future, TaskCrashed(f"the task failed: {type(error).__name__}"))
        else:
            _resolve(task.future, TaskResult(response.body, response.cpu_seconds))
        with self._changed:
            task.process = None
            if process is None or process.is_usable:
                return process
        process.end()
        return None

    def _fork(self) -> TaskProcess:
        """Start a task process, and the fork server if it has not started or has ended."""
        for _ in range(2):
            server = self._running_server()
            try:
                return server.fork()
            except (EOFError, OSError):
                self._discard(server)
        raise IsolationUnavailable("no process can be started now")

    def _running_server(self) -> ForkServer:
        with self._server_lock:
            if self._is_closed:
                raise IsolationUnavailable("the process pool is closed")
            if self._server is None:
                try:
                    self._server = ForkServer(self._preloaded, self._rehearsed)
                except OSError:
                    raise IsolationUnavailable("no process can be started now") from None
            return self._server

    def _discard(self, server: ForkServer) -> None:
        with self._server_lock:
            if self._server is not server:
                return
            self._server = None
        log.warning("fork server ended unexpectedly", pid=server.pid)
        server.close()


def _add_cpu_time(total: CpuTime, ended: asyncio.Future[TaskResult]) -> None:
    if not ended.cancelled():
        error = ended.exception()
        if error is None:
            total.seconds += ended.result().cpu_seconds
        elif isinstance(error, IsolationError):
            total.seconds += error.cpu_seconds


def _resolve(future: Future[TaskResult], result: TaskResult | BaseException) -> None:
    """Set the result of a future, unless it was cancelled."""
    with suppress(InvalidStateError):
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


@lru_cache
def _pool() -> Pool:
    pool = Pool(get_settings().isolated_processes)
    atexit.register(pool.close)
    return pool
