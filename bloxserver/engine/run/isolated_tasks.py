"""The process pool, as the blocks of one user use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from bloxserver.blocks.base import BlockError
from bloxserver.errors import LimitReached
from bloxserver.isolation import (
    CpuTime,
    IsolationError,
    IsolationUnavailable,
    RequestTooLarge,
    ResourceExceeded,
    TaskLimits,
    isolated,
)
from bloxserver.plans import Plan

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""More than the message, the input and the responses of an attempt, each of which has a limit of its own."""
LIMITS = TaskLimits(cpu_seconds=10, seconds=30)
HINT = "Divide the work between several executions, or use smaller messages."


class IsolatedTasks:
    """Runs functions of one execution in other processes, within the user's share and the limit of CPU time."""

    def __init__(self, user_id: UUID, plan: Plan, cpu: CpuTime | None = None) -> None:
        """`cpu` is the CPU time that the execution has used, to which that of its functions is added."""
        self._user_id = user_id
        self._plan = plan
        self._slots = asyncio.Semaphore(plan.isolated_tasks)
        self._cpu = cpu or CpuTime()

    @property
    def cpu_seconds(self) -> float:
        """The CPU time that the execution has used, also for functions that failed or were cancelled."""
        return self._cpu.seconds

    async def run(self, function: str, request: bytes | Callable[[], bytes], limits: TaskLimits | None = None) -> bytes:
        """Run a function of `isolation.functions`. Raises `BlockError`.

        A request that is a function is called when a process may be used: many waiting requests take no memory.
        """
        try:
            async with self._slots:
                content = request() if callable(request) else request
                return await self._run(function, content, limits or LIMITS)
        except IsolationError as error:
            raise _block_error(error) from None

    async def _run(self, function: str, request: bytes, limits: TaskLimits) -> bytes:
        left = self._plan.execution_cpu_seconds - self.cpu_seconds
        if left <= 0:
            limit = LimitReached("execution_cpu_seconds", self._plan.execution_cpu_seconds, self.cpu_seconds, HINT)
            raise BlockError(limit.code, limit.message, retryable=False)
        limits = replace(limits, cpu_seconds=min(limits.cpu_seconds, left))
        result = await isolated(
            function,
            request,
            tenant=self._user_id,
            share=self._plan.isolated_tasks,
            limits=limits,
            max_bytes=MAX_REQUEST_BYTES,
            cpu=self._cpu,
        )
        return result.body


def _block_error(error: IsolationError) -> BlockError:
    match error:
        case ResourceExceeded():
            message = f"the step exceeded its {error.resource} limit"
            return BlockError(f"{error.resource}_limit_exceeded", message, retryable=False)
        case RequestTooLarge():
            return BlockError("payload_too_large", "the message and the input are too large", retryable=False)
        case IsolationUnavailable():
            return BlockError("isolation_unavailable", str(error))
        case _:
            return BlockError("internal_error", "internal error")
