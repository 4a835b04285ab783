"""The process pool: a fixed number of processes for the tasks of all tenants of this process."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from bloxserver.isolation.errors import IsolationError, IsolationUnavailable, RequestTooLarge
from bloxserver.isolation.limits import TaskLimits
from bloxserver.isolation.processes import ForkServer, TaskProcess
from bloxserver.isolation.shares import FairQueue
from bloxserver.plans import FREE
from bloxserver.settings import get_settings

MAX_WAITING = 1_000
"""The maximum number of waiting tasks of a tenant."""
DEFAULT_LIMITS = TaskLimits()
IDLE_SECONDS = 60.0
"""The time after which a process without a task ends."""


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
) -> TaskResult:
    """Run a function of `functions.FUNCTIONS` in another process.

    `share` is the number of tasks of this tenant that may run at once. `max_bytes` is the limit of the request's size;
    None is `MAX_BODY_BYTES`. A cancelled task is killed. Raises `IsolationError`.
    """
    limit = get_settings().max_body_bytes if max_bytes is None else max_bytes
    if len(request) > limit:
        raise RequestTooLarge(f"the request has more than {limit} bytes")
    task = _pool().submit(_Task(tenant, function, request, limits), share)
    try:
        return await asyncio.wrap_future(task.future)
    finally:
        if not task.future.done() or task.future.cancelled():
            _pool().cancel(task)


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

    def __init__(self, size: int, idle_seconds: float = IDLE_SECONDS) -> None:
        self._size = size
        self._idle_seconds = idle_seconds
        self._server = ForkServer()
        self._queue: FairQueue[_Task] = FairQueue(size)
        self._changed = threading.Condition()
        self._threads = 0
        self._idle = 0

    def submit(self, task: _Task, share: int) -> _Task:
        """Queue a task. Raises `IsolationUnavailable` if too many tasks of the tenant wait."""
        with self._changed:
            if self._queue.waiting(task.tenant) >= MAX_WAITING:
                raise IsolationUnavailable(f"{MAX_WAITING} tasks wait already: run fewer at once")
            self._queue.put(task.tenant, task, share)
            self._changed.notify()
            if len(self._queue) > self._idle and self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._serve, name="isolation", daemon=True).start()
        return task

    def cancel(self, task: _Task) -> None:
        """Remove a waiting task, or kill the process of a running one."""
        with self._changed:
            task.is_cancelled = True
            was_waiting = self._queue.remove(task.tenant, task)
            process = task.process
        if not was_waiting and process is not None:
            process.kill()

    def _serve(self) -> None:
        """Run tasks in one process until there are none for a while."""
        process: TaskProcess | None = None
        try:
            while (taken := self._take()) is not None:
                tenant, task = taken
                process = self._run(task, process)
                with self._changed:
                    self._queue.done(tenant)
                    self._changed.notify()
        finally:
            if process is not None:
                process.close()

    def _take(self) -> tuple[Hashable, _Task] | None:
        """Wait for the next task. Return None if there is none for a while: then the thread must end."""
        with self._changed:
            while (taken := self._queue.take()) is None:
                self._idle += 1
                was_notified = self._changed.wait(self._idle_seconds)
                self._idle -= 1
                if not was_notified:
                    self._threads -= 1
                    return None
            return taken

    def _run(self, task: _Task, process: TaskProcess | None) -> TaskProcess | None:
        """Run a task in this process, or in a new one. Return the process if it can run another task."""
        try:
            if process is None:
                process = self._server.fork()
            with self._changed:
                task.process = process
                if task.is_cancelled:
                    return process
            response = process.run(task.function, task.limits, task.request)
        except IsolationError as error:
            _resolve(task.future, error)
        except BaseException as error:
            _resolve(task.future, error)
            raise
        else:
            _resolve(task.future, TaskResult(response.body, response.cpu_seconds))
        finally:
            with self._changed:
                task.process = None
        return process if process is not None and process.is_usable else None

    def close(self) -> None:
        """End all processes. Running tasks fail."""
        self._server.close()


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
