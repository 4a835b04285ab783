"""The heartbeat process of a worker. It keeps sending heartbeats while a block holds the worker's interpreter lock.

It reads one line of JSON (`HeartbeatConfig`), then one line for each turn of the worker's event loop. It writes one
line for each heartbeat, and kills the worker if its event loop is blocked. It ends when its input closes, which happens
when the worker ends. It imports few modules, since each worker has one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, TypedDict

from bloxserver.engine.watchdog_process import EventLoopCheck, EventLoopCheckConfig, is_stopped, log_line

if TYPE_CHECKING:
    import asyncpg

BEAT = """
INSERT INTO workers (worker_id, version, last_heartbeat_at) VALUES ($1, $2, clock_timestamp())
ON CONFLICT (worker_id) DO UPDATE SET last_heartbeat_at = excluded.last_heartbeat_at"""


class HeartbeatConfig(TypedDict):
    """The configuration that the worker sends."""

    connection: dict[str, Any]
    """Arguments of the driver. They are sent on the input, since arguments of a process are visible to others."""
    worker_id: str
    version: str
    log_warnings: bool
    interval_seconds: float
    timeout_seconds: float
    check: EventLoopCheckConfig


class HeartbeatProcess:
    """Sends heartbeats while the worker runs, is not stopped by a signal, and its event loop is not blocked."""

    def __init__(self, config: HeartbeatConfig) -> None:
        self._config = config
        self._check = EventLoopCheck(**config["check"])
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def run(self, turns: asyncio.StreamReader) -> None:
        """Send heartbeats until the input ends."""
        tasks = [asyncio.create_task(self._check_on()), asyncio.create_task(self._beat_on())]
        while await turns.readline():
            self._check.note_turn()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            self._connection.terminate()

    async def _check_on(self) -> None:
        while True:
            await asyncio.sleep(self._check.interval_seconds)
            self._check.check()

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(self._config["interval_seconds"])
            if self._check.is_blocked or is_stopped(os.getppid()):
                continue
            try:
                async with asyncio.timeout(self._config["timeout_seconds"]):
                    await self._beat()
            except Exception as error:
                if self._connection is not None:
                    self._connection.terminate()
                self._connection = None
                self._warn(error)
            else:
                sys.stdout.write("\n")
                sys.stdout.flush()

    async def _beat(self) -> None:
        # Imported when the first heartbeat is due, so that a worker that ends before does not wait for it.
        from bloxserver.models.postgres_connect import connect

        if self._connection is None:
            self._connection = await connect(**self._config["connection"], statement_cache_size=0)
        await self._connection.execute(BEAT, self._config["worker_id"], self._config["version"])

    def _warn(self, error: Exception) -> None:
        if self._config["log_warnings"]:
            as_json = self._config["check"]["log_as_json"]
            log_line("warning", "heartbeat failed", {"error": type(error).__name__}, as_json=as_json)


async def main() -> None:
    # Signals that stop the worker, as Ctrl+C does, may reach this process too: it continues during the shutdown.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    turns = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(turns), sys.stdin)
    line = await turns.readline()
    if line:
        config: HeartbeatConfig = json.loads(line)
        await HeartbeatProcess(config).run(turns)


def beat() -> None:
    """The program of the process."""
    asyncio.run(main())
