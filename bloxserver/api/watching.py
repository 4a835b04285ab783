"""Watches the executions that open responses wait for.

An open response holds no database connection and reads nothing itself until its execution has changed. The watcher
reads an execution when the engine reports a change of it, in this or in another process. At intervals, one statement
reads all executions, because some changes are not reported: those of other programs, and those of other processes while
the connection for notifications is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import structlog

from bloxserver.api.dependencies import SessionSource
from bloxserver.api.shutdown import Shutdown
from bloxserver.engine.live_texts import AgentText, Announce
from bloxserver.models.connection_pool import current_tenant
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.execution_changes import ANY, change_key
from bloxserver.queries.progress import Progress, read_progress

log = structlog.stdlib.get_logger("bloxserver.request")

PAUSE_SECONDS = 0.01
"""Minimum time between two reads."""
NOTIFIED_INTERVAL_SECONDS = 5.0
"""How often all executions are read while changes are reported."""
MIN_INTERVAL_SECONDS = 0.02
MAX_INTERVAL_SECONDS = 0.25
"""How often all executions are read otherwise: at first, and while none changes."""
MAX_EXECUTIONS_PER_SECOND: float = 5_000
"""A statement reads so many executions per second. With more responses, it is repeated less often."""
ANNOUNCED_SECONDS = 5.0
"""How often this process announces to the workers which executions it watches."""
MAX_HELD = 256 * 1024
"""Characters of texts that a response holds. It gets those beyond it when its client has read."""
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
        self.with_steps = with_steps
        self.changed = asyncio.Event()
        """Set when there is something to send, and when the server shuts down."""
        self._has_changed = False
        self.is_unread = True
        """Whether the execution must be read, although no change was reported."""
        self._seen: Progress | None = RUNNING
        self._texts: list[AgentText] = []
        self._held = 0
        self._ends: dict[UUID, tuple[int, int, int]] = {}
        """By step: the attempt, the answer and the number of its characters that were received."""

    def hear(self, text: AgentText) -> bool:
        """Receive a part of a text. Returns False if an earlier part was lost."""
        attempt, answer, end = self._ends.get(text.step_id, (0, 0, 0))
        if (attempt, answer) > (text.attempt, text.answer) or self._held >= MAX_HELD:
            return True
        if (attempt, answer) < (text.attempt, text.answer):
            end = 0
        if text.offset > end:
            return False
        if rest := text.text[end - text.offset :]:
            self._ends[text.step_id] = (text.attempt, text.answer, end + len(rest))
            self._texts.append(replace(text, offset=end, text=rest))
            self._held += len(rest)
            self.changed.set()
        return True

    def take_texts(self) -> list[AgentText]:
        """Return the parts of texts that were not returned yet. Those of an answer follow each other without gaps."""
        texts, self._texts, self._held = self._texts, [], 0
        return texts

    def take_change(self) -> bool:
        """Return whether the execution has changed or was deleted since the last call."""
        has_changed, self._has_changed = self._has_changed, False
        return has_changed

    def forget(self) -> None:
        """Report the last change again, because it could not be read."""
        self._seen = RUNNING
        self.is_unread = True

    def compare(self, progress: Progress | None) -> bool:
        """Note whether the execution has changed since the last call; None means that it was deleted."""
        if progress is not None and not self.with_steps:
            progress = Progress(progress.status, None)
        is_changed = progress != self._seen
        self._seen = progress
        if is_changed:
            self._has_changed = True
            self.changed.set()
        return is_changed


class ExecutionWatcher:
    """The watches of a process. It reads nothing while there is none."""

    def __init__(self) -> None:
        self._watches: dict[UUID, set[Watch]] = {}
        self._ids: dict[str, set[UUID]] = {}
        """The watched executions by their `change_key`."""
        self._unread: set[UUID] = set()
        self._reads_all_at = 0.0
        self._earliest_all_at = 0.0
        """All executions are not read before, so that reading many of them takes a small share of the time."""
        self._is_notified = False
        self._announce: list[Announce] = []
        self._announced_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._reading = asyncio.Lock()

    def changed(self, keys: frozenset[str]) -> None:
        """Read the watched executions with these keys soon; to be called on the event loop."""
        if ANY in keys:
            self._read_all()
        elif found := self._ids.keys() & keys:
            self._read_soon(id for key in found for id in self._ids[key])

    def set_notified(self, is_notified: bool) -> None:
        """Whether `changed` is called for all changes of BloxServer. Changes may have been missed until now."""
        self._is_notified = is_notified
        self._read_all()

    def hear(self, text: AgentText) -> None:
        """Pass on a part of a text to the watches of its execution; to be called on the event loop."""
        watches = [watch for watch in self._watches.get(text.execution_id, ()) if watch.with_steps]
        if False in [watch.hear(text) for watch in watches]:
            self._tell(frozenset([change_key(text.execution_id)]), is_new=True)

    def on_watch(self, announce: Announce) -> Callable[[], None]:
        """Call `announce` with the keys of executions whose texts are wanted, now and while they are.

        Returns a function that ends this.
        """
        self._announce.append(announce)
        return lambda: self._announce.remove(announce)

    def _tell(self, keys: frozenset[str], *, is_new: bool) -> None:
        for announce in self._announce if keys else ():
            announce(keys, is_new=is_new)

    def _tell_all(self, moment: float) -> None:
        """Workers that started meanwhile do not know what is watched, and others forget it after a time."""
        if moment >= self._announced_at + ANNOUNCED_SECONDS:
            self._announced_at = moment
            watched = [id for id, watches in self._watches.items() if any(each.with_steps for each in watches)]
            self._tell(frozenset(map(change_key, watched)), is_new=False)

    async def wait(self, watch: Watch, seconds: float) -> bool:
        """Wait until there is something to send, at most for `seconds`. Returns False if the time elapsed."""
        if self._task is None or self._task.done() or self._task.get_loop() is not asyncio.get_running_loop():
            self._woken, self._reading = asyncio.Event(), asyncio.Lock()
            self._reads_all_at = self._earliest_all_at = self._announced_at = 0.0
            self._task = asyncio.create_task(self._run())
        if watch not in self._watches.get(watch.execution_id, ()):
            self._add(watch)
        if watch.is_unread:
            watch.is_unread = False
            self._read_soon([watch.execution_id])
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await watch.changed.wait()
        has_changed = watch.changed.is_set()
        watch.changed.clear()
        return has_changed

    async def end(self, watch: Watch) -> None:
        """Forget a watch. After the end of the last one, no statement runs."""
        watches = self._watches.get(watch.execution_id, set())
        watches.discard(watch)
        if not watches and self._watches.pop(watch.execution_id, None) is not None:
            key = change_key(watch.execution_id)
            self._ids[key].discard(watch.execution_id)
            if not self._ids[key]:
                del self._ids[key]
        if not self._watches:
            self._woken.set()
            async with self._reading:
                pass

    def _add(self, watch: Watch) -> None:
        self._watches.setdefault(watch.execution_id, set()).add(watch)
        self._ids.setdefault(change_key(watch.execution_id), set()).add(watch.execution_id)
        if watch.with_steps:
            self._tell(frozenset([change_key(watch.execution_id)]), is_new=True)
        watch.shutdown.on_request(self._shut_down)
        if watch.shutdown.requested:
            watch.changed.set()

    def _shut_down(self) -> None:
        if self._task is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._task.get_loop().call_soon_threadsafe(self._end_responses)

    def _end_responses(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                if watch.shutdown.requested:
                    watch.changed.set()

    def _read_all(self) -> None:
        self._reads_all_at = 0.0
        self._woken.set()

    def _read_soon(self, execution_ids: Iterable[UUID]) -> None:
        self._unread.update(execution_ids)
        self._woken.set()

    @property
    def _next_all_at(self) -> float:
        return max(self._reads_all_at, self._earliest_all_at)

    async def _run(self) -> None:
        current_tenant.set(None)  # not the tenant whose request started this task
        clock = asyncio.get_running_loop().time
        interval = MIN_INTERVAL_SECONDS
        while self._watches:
            started = clock()
            reads_all = started >= self._next_all_at
            ids = [*self._watches] if reads_all else [id for id in self._unread if id in self._watches]
            # Changes that are reported from now on may be missing in what is read now.
            self._unread.clear()
            pause = len(ids) / MAX_EXECUTIONS_PER_SECOND
            if reads_all:
                self._tell_all(started)
                self._reads_all_at = started + (NOTIFIED_INTERVAL_SECONDS if self._is_notified else interval)
                self._earliest_all_at = started + pause
                pause = 0.0  # reported changes do not wait
            async with self._reading:
                has_changed = await self._read(ids)
            if has_changed is None:
                self._reads_all_at = min(self._reads_all_at, started + MAX_INTERVAL_SECONDS)
            interval = MIN_INTERVAL_SECONDS if has_changed else min(interval * 1.5, MAX_INTERVAL_SECONDS)
            await asyncio.sleep(max(0.0, started + max(pause, PAUSE_SECONDS) - clock()))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._next_all_at - clock())):
                    await self._woken.wait()
                interval = MIN_INTERVAL_SECONDS
            self._woken.clear()

    async def _read(self, ids: Sequence[UUID]) -> bool | None:
        """Read these executions. Returns whether one has changed; None if they cannot be read now."""
        watches = [watch for id in ids for watch in self._watches.get(id, ())]
        if not watches:
            return False
        found: dict[UUID, Progress] = {}
        try:
            async with watches[-1].sessions.reading() as session:
                for with_steps in (True, False):
                    wanted = {watch.execution_id for watch in watches if watch.with_steps is with_steps} - found.keys()
                    if wanted:
                        found |= await read_progress(session, wanted, with_steps=with_steps)
        except Exception as error:
            # The responses stay open until the database is available again.
            log.warning("execution poll failed", error=type(error).__name__)
            return None
        changed = [watch for watch in watches if watch.compare(found.get(watch.execution_id))]
        return bool(changed)
