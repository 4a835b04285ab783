"""Wakes other processes with PostgreSQL's LISTEN and NOTIFY: for work, and for changes of executions.

A lost message only delays work and responses until the next poll. One message is sent after several commits, because a
NOTIFY within their transactions would make the commits wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from bloxserver.engine.loops import wait_for_wake
from bloxserver.models.database import Database, WakeReason
from bloxserver.models.execution_changes import ANY, KEY_CHARACTERS
from bloxserver.models.transient_errors import describe_error
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

CHANNEL = "bloxserver_work"
CHANGES_CHANNEL = "bloxserver_changes"
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


class WakeNotifier:
    """Sends and receives notifications on a separate connection."""

    def __init__(
        self,
        settings: Settings,
        heard: Callable[[frozenset[WakeReason]], None],
        watcher: ChangeListener | None = None,
    ) -> None:
        self._settings = settings
        self._heard = heard
        self._watcher = watcher
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
                    await driver.add_listener(CHANGES_CHANNEL, self._receive_changes)
                    self._watcher.set_notified(True)
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

    def _receive(self, driver: Any, process_id: int, channel: str, payload: object) -> None:
        if process_id != driver.get_server_pid():
            known = {work.value for work in WakeReason}
            self._heard(frozenset(WakeReason(word) for word in str(payload).split(",") if word in known))

    def _receive_changes(self, driver: Any, process_id: int, channel: str, payload: object) -> None:
        if process_id != driver.get_server_pid() and self._watcher is not None:
            keys = str(payload)
            self._watcher.changed(
                frozenset(keys[begin : begin + KEY_CHARACTERS] for begin in range(0, len(keys), KEY_CHARACTERS))
            )
