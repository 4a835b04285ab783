"""Takes from dead workers what they were at, so that living ones go on with it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from bloxserver.engine.queue.claims import delete_expired_workers, reclaim_expired
from bloxserver.engine.queue.heartbeat import Heartbeat
from bloxserver.engine.queue.stale_sessions import terminate_stale_sessions
from bloxserver.models.database import Database
from bloxserver.models.postgres import IDLE_SECONDS
from bloxserver.models.transient_errors import unless_transient
from bloxserver.observability import metrics
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

STALE_AFTER = timedelta(seconds=IDLE_SECONDS)
DELETE_AFTER_TIMEOUTS = 100
"""Times `HEARTBEAT_TIMEOUT_SECONDS`, after which a dead worker is not even remembered."""


class Recovery:
    """Runs on every worker; it is the same whichever of them sees it first."""

    def __init__(self, settings: Settings, database: Database, heartbeat: Heartbeat) -> None:
        self._pause = settings.heartbeat_interval_seconds
        self._silence = timedelta(seconds=settings.heartbeat_timeout_seconds)
        self._database = database
        self._heartbeat = heartbeat

    async def run(self) -> None:
        """Until cancelled. A failure is logged and tried again."""
        while True:
            try:
                await self.recover()
            except Exception as error:
                log.warning(
                    "cannot look for dead workers", error=type(error).__name__, exc_info=unless_transient(error)
                )
            await asyncio.sleep(self._pause)

    async def recover(self) -> int:
        """Release what dead workers were at; returns how many executions that were."""
        try:
            await self._terminate_stale_sessions()
        except Exception as error:
            # It may not be ours to end sessions on this server; the dead are taken over from all the same.
            about = {"error": type(error).__name__, "exc_info": unless_transient(error)}
            log.warning("cannot end sessions of processes that are gone", **about)
        if not self._heartbeat.can_declare_dead:
            return 0
        async with self._database.transaction() as session:
            released = await reclaim_expired(session, self._silence)
            await delete_expired_workers(session, DELETE_AFTER_TIMEOUTS * self._silence)
        metrics.EXECUTIONS_RECOVERED.inc(released)
        if released:
            log.warning("took over from dead workers", executions=released)
        return released

    async def _terminate_stale_sessions(self) -> None:
        """Before anything is released: they may hold the locks of it, and that under which all workers claim."""
        if self._database.engine.dialect.name != "postgresql":
            return
        async with self._database.transaction() as session:
            ended = await terminate_stale_sessions(session, STALE_AFTER)
        if ended:
            log.warning("ended sessions of processes that are gone", sessions=ended)
