"""Wakes other processes with PostgreSQL's LISTEN and NOTIFY, so that they find work before their next poll.

A lost message only delays work until the next poll. One message is sent after several commits that created work,
because a NOTIFY within their transactions would make the commits wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from bloxserver.engine.loops import wait_for_wake
from bloxserver.models.database import Database, WakeReason
from bloxserver.models.transient_errors import describe_error
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

CHANNEL = "bloxserver_work"
MIN_INTERVAL_SECONDS = 0.02
PROBE_SECONDS = 10
"""How often an idle connection is probed."""
RECONNECT_SECONDS = 1


class WakeNotifier:
    """Sends and receives notifications on a separate connection."""

    def __init__(self, settings: Settings, heard: Callable[[frozenset[WakeReason]], None]) -> None:
        self._settings = settings
        self._heard = heard
        self._work: set[WakeReason] = set()
        self._woken = asyncio.Event()
        self._is_connected = True

    def notify(self, work: frozenset[WakeReason]) -> None:
        """Wake other processes soon; to be called on the event loop."""
        self._work |= work
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
            await driver.add_listener(CHANNEL, self._receive)
            if not self._is_connected:
                log.info("NOTIFY restored")
            self._is_connected = True
            try:
                while True:
                    await self._send(driver)
            finally:
                # Not returned to the pool: it would continue to listen.
                await connection.invalidate()

    async def _send(self, driver: Any) -> None:
        if not await wait_for_wake(self._woken, PROBE_SECONDS):
            await driver.execute("SELECT 1")
            return
        work, self._work = self._work, set()
        await driver.execute("SELECT pg_notify($1, $2)", CHANNEL, ",".join(sorted(work)))
        await asyncio.sleep(MIN_INTERVAL_SECONDS)

    def _receive(self, driver: Any, process_id: int, channel: str, payload: object) -> None:
        if process_id != driver.get_server_pid():
            known = {work.value for work in WakeReason}
            self._heard(frozenset(WakeReason(word) for word in str(payload).split(",") if word in known))
