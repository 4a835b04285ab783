"""Watches the executions that open responses wait for: one statement reads all executions of the process.

The statement is repeated when a transaction of any process may have changed an execution, and at intervals, because
not every change is announced. An open response holds no database connection and reads nothing itself until its
execution has changed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import UUID

import structlog

from bloxserver.api.dependencies import SessionSource
from bloxserver.api.shutdown import Shutdown
from bloxserver.models.connection_pool import current_tenant
from bloxserver.models.enums import ExecutionStatus
from bloxserver.queries.executions import Progress, read_progress

log = structlog.stdlib.get_logger("bloxserver.request")

PAUSE_SECONDS = 0.02
"""Minimum time between two reads."""
MIN_INTERVAL_SECONDS = 0.02
"""How soon executions are read again after a change."""
MAX_INTERVAL_SECONDS = 0.25
"""How often idle executions are read."""
MAX_EXECUTIONS_PER_SECOND = 5_000
"""The statement reads so many executions per second. With more responses, it is repeated less often."""
RUNNING = Progress(ExecutionStatus.RUNNING, None)


class Watch:
    """An open response that waits for changes of an execution."""

    def __init__(
        self, sessions: SessionSource, shutdown: Shutdown, execution_id: UUID, *, with_steps: bool = False
    ) -> None:
        """Without `with_steps`, only the end of the execution is a change."""
        self.sessions = sessions
        self.shutdown = shutdown
        self.execution_id = execution_id
        self.changed = asyncio.Event()
        """Set when the execution has changed or was deleted, and when the server shuts down."""
        self._with_steps = with_steps
        self._seen: Progress | None = RUNNING

    def forget(self) -> None:
        """Report the last change again, because it could not be read."""
        self._seen = RUNNING

    def compare(self, progress: Progress | None) -> bool:
        """Set `changed` if the execution has changed since the last call; None means that it was deleted."""
        if progress is not None and not self._with_steps:
            progress = Progress(progress.status, None)
        is_changed = progress != self._seen
        self._seen = progress
        if is_changed or self.shutdown.requested:
            self.changed.set()
        return is_changed


class ExecutionWatcher:
    """The watches of a process. It reads nothing while there is none."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._reading = asyncio.Lock()

    def wake(self) -> None:
        """Read the executions soon, because some may have changed; to be called on the event loop."""
        self._woken.set()

    async def wait(self, watch: Watch, seconds: float) -> None:
        """Wait for a change of the execution, at most for `seconds`."""
        if self._task is None or self._task.done() or self._task.get_loop() is not asyncio.get_running_loop():
            self._woken, self._reading = asyncio.Event(), asyncio.Lock()
            self._task = asyncio.create_task(self._run())
        if watch not in self._watches:
            self._watches.add(watch)
            self.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await watch.changed.wait()
        watch.changed.clear()

    async def end(self, watch: Watch) -> None:
        """Forget a watch. After the end of the last one, no statement runs."""
        self._watches.discard(watch)
        if not self._watches:
            self.wake()
            async with self._reading:
                pass

    async def _run(self) -> None:
        current_tenant.set(None)  # not the tenant whose request started this task
        clock = asyncio.get_running_loop().time
        interval = MIN_INTERVAL_SECONDS
        while self._watches:
            started = clock()
            async with self._reading:
                has_changed = await self._read()
            pause = max(PAUSE_SECONDS, len(self._watches) / MAX_EXECUTIONS_PER_SECOND)
            await asyncio.sleep(max(0.0, started + pause - clock()))
            interval = MIN_INTERVAL_SECONDS if has_changed else min(interval * 1.5, MAX_INTERVAL_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, started + interval - clock())):
                    await self._woken.wait()
                interval = MIN_INTERVAL_SECONDS
            self._woken.clear()

    async def _read(self) -> bool:
        """Read all executions. Returns whether one has changed."""
        watches = list(self._watches)
        if not watches:
            return False
        ids = {watch.execution_id for watch in watches}
        try:
            async with watches[-1].sessions.reading() as session:
                found = await read_progress(session, ids)
        except Exception as error:
            # The responses stay open until the database is available again.
            log.warning("execution poll failed", error=type(error).__name__)
            for watch in watches:
                if watch.shutdown.requested:
                    watch.changed.set()
            return False
        changed = [watch for watch in watches if watch.compare(found.get(watch.execution_id))]
        return bool(changed)
