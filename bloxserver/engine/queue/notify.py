"""Wakes other processes with PostgreSQL's LISTEN and NOTIFY: for work, and for changes of executions.

The texts of agents reach the processes that watch their executions in the same way. A lost message only delays work
and responses until the next poll. One message is sent after several commits, because a NOTIFY within their
transactions would make the commits wait for each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import structlog

from bloxserver.engine.live_texts import AgentText, Announce, LiveTexts
from bloxserver.engine.loops import wait_for_wake
from bloxserver.models.database import Database, WakeReason
from bloxserver.models.execution_changes import ANY, KEY_CHARACTERS
from bloxserver.models.transient_errors import describe_error
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

CHANNEL = "bloxserver_work"
CHANGES_CHANNEL = "bloxserver_changes"
TEXTS_CHANNEL = "bloxserver_texts"
WATCHED_CHANNEL = "bloxserver_watched"
NEW, KNOWN = "+", "="
"""The beginnings of messages with watched executions: those that a process begins to watch, and all of them."""
MAX_TEXTS = 500
"""Parts of texts that wait to be sent. Beyond it, the oldest ones are lost."""
MAX_KEYS = 900
"""Keys in one message. With more changes it says that any execution may have changed. PostgreSQL limits a message to
8,000 bytes.
"""
MIN_INTERVAL_SECONDS = 0.02
PROBE_SECONDS = 10
"""How often an idle connection is probed."""
RECONNECT_SECONDS = 1


class ChangeListener(Protocol):
    """Learns which executions have changed."""

    def changed(self, keys: frozenset[str]) -> None:
        """Executions with these keys have changed, see `models.execution_changes`."""

    def set_notified(self, is_notified: bool) -> None:
        """From now on, `changed` is called for all changes, or may not be. Called on the event loop."""

    def hear(self, text: AgentText) -> None:
        """The next part of a text of an execution that is watched. Called on the event loop."""

    def on_watch(self, announce: Announce) -> Callable[[], None]:
        """Call `announce` when executions are watched, and repeatedly while they are.

        Returns a function that ends this.
        """


class WakeNotifier:
    """Sends and receives notifications on a separate connection."""

    def __init__(
        self,
        settings: Settings,
        heard: Callable[[frozenset[WakeReason]], None],
        watcher: ChangeListener | None = None,
        texts: LiveTexts | None = None,
    ) -> None:
        """`texts` are those of this process. They are sent to the processes that watch the executions."""
        self._settings = settings
        self._heard = heard
        self._watcher = watcher
        self._audience = None if texts is None else texts.audience(self._notify_text)
        self._texts: deque[AgentText] = deque(maxlen=MAX_TEXTS)
        self._watched: dict[str, frozenset[str]] = {}
        self._work: frozenset[WakeReason] = frozenset()
        self._changes: frozenset[str] = frozenset()
        self._woken = asyncio.Event()
        self._is_connected = True

    def notify(self, work: frozenset[WakeReason]) -> None:
        """Wake other processes soon; to be called on the event loop."""
        self._work |= work
        self._woken.set()

    def notify_changes(self, keys: frozenset[str]) -> None:
        """Tell other processes soon which executions have changed; to be called on the event loop."""
        changes = self._changes | keys
        self._changes = changes if len(changes) <= MAX_KEYS and ANY not in changes else frozenset([ANY])
        self._woken.set()

    def notify_watched(self, keys: frozenset[str], *, is_new: bool) -> None:
        """Tell other processes soon which executions this one watches; to be called on the event loop."""
        kind = NEW if is_new else KNOWN
        self._watched[kind] = self._watched.get(kind, frozenset()) | keys
        self._woken.set()

    def _notify_text(self, text: AgentText) -> None:
        self._texts.append(text)
        self._woken.set()

    async def run(self) -> None:
        """Send and receive until cancelled. Without a connection, other processes find work when they poll."""
        database = Database(self._settings.model_copy(update={"database_pool_size": 1}))
        try:
            while True:
                try:
                    await self._listen(database)
                except Exception as error:
                    if self._is_connected:
                        log.warning("NOTIFY failed; falling back to polling", reason=describe_error(error))
                    self._is_connected = False
                await asyncio.sleep(RECONNECT_SECONDS)
        finally:
            await database.dispose()

    async def _listen(self, database: Database) -> None:
        async with database.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            driver.add_termination_listener(lambda _: self._woken.set())
            try:
                await driver.add_listener(CHANNEL, self._receive)
                if self._watcher is not None:
                    await driver.add_listener(TEXTS_CHANNEL, self._receive_text)
                    await driver.add_listener(CHANGES_CHANNEL, self._receive_changes)
                    self._watcher.set_notified(True)
                if self._audience is not None:
                    await driver.add_listener(WATCHED_CHANNEL, self._receive_watched)
                if not self._is_connected:
                    log.info("NOTIFY restored")
                self._is_connected = True
                while True:
                    await self._send(driver)
            finally:
                if self._watcher is not None:
                    self._watcher.set_notified(False)
                # Not returned to the pool: it would continue to listen.
                await connection.invalidate()

    async def _send(self, driver: Any) -> None:
        await wait_for_wake(self._woken, PROBE_SECONDS)
        work, self._work = self._work, frozenset()
        changes, self._changes = self._changes, frozenset()
        messages = [(CHANNEL, ",".join(sorted(work)))] if work else []
        # They are lost if they cannot be sent now. Watchers ask for texts again.
        messages += self._take_texts()
        if changes:
            messages.append((CHANGES_CHANNEL, "".join(changes)))
        if not messages:
            await driver.execute("SELECT 1")  # fails if the connection is lost
            return
        try:
            await driver.executemany("SELECT pg_notify($1, $2)", messages)
        except BaseException:
            self.notify(work)
            self.notify_changes(changes)
            raise
        await asyncio.sleep(MIN_INTERVAL_SECONDS)

    def _take_texts(self) -> Iterator[tuple[str, str]]:
        """The messages about texts. They precede the change that ends their step."""
        watched, self._watched = self._watched, {}
        for kind, keys in watched.items():
            for part in _parts([*keys]):
                yield WATCHED_CHANNEL, kind + "".join(part)
        while self._texts:
            yield TEXTS_CHANNEL, self._texts.popleft().dump()

    def _receive(self, driver: Any, process_id: int, channel: str, payload: object) -> None:
        if process_id != driver.get_server_pid():
            known = {work.value for work in WakeReason}
            self._heard(frozenset(WakeReason(word) for word in str(payload).split(",") if word in known))

    def _receive_changes(self, driver: Any, process_id: int, channel: str, payload: object) -> None:
        if process_id != driver.get_server_pid() and self._watcher is not None:
            self._watcher.changed(_keys(str(payload)))

    def _receive_text(self, driver: Any, process_id: int, channel: str, payload: object) -> None:
        if process_id != driver.get_server_pid() and self._watcher is not None:
            self._watcher.hear(AgentText.load(str(payload)))

    def _receive_watched(self, driver: Any, process_id: int, channel: str, payload: object) -> None:
        if process_id != driver.get_server_pid() and self._audience is not None:
            kind, keys = str(payload)[:1], str(payload)[1:]
            self._audience.watch(_keys(keys), is_new=kind == NEW)


def _keys(payload: str) -> frozenset[str]:
    return frozenset(payload[begin : begin + KEY_CHARACTERS] for begin in range(0, len(payload), KEY_CHARACTERS))


def _parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(keys), MAX_KEYS):
        yield keys[begin : begin + MAX_KEYS]
