"""Takes from dead workers what they were at, so that living ones go on with it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from bloxserver import metrics
from bloxserver.api.models.database import Database
from bloxserver.api.models.passing import unless_passing
from bloxserver.api.models.postgres import IDLE_SECONDS
from bloxserver.engine.heartbeat import Heartbeat
from bloxserver.services.claims import forget_workers, release_dead
from bloxserver.services.sessions import end_stranded_sessions
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

STRANDED_AFTER = timedelta(seconds=IDLE_SECONDS)
FORGET_AFTER = 100
"""Times `DEAD_AFTER_SECONDS`, after which a dead worker is not even remembered."""


class TakeOver:
    """Runs on every worker; it is the same whichever of them sees it first."""

    def __init__(self, settings: Settings, database: Database, heartbeat: Heartbeat) -> None:
        self._pause = settings.heartbeat_seconds
        self._silence = timedelta(seconds=settings.dead_after_seconds)
        self._database = database
        self._heartbeat = heartbeat

    async def run(self) -> None:
        """Until cancelled. A failure is logged and tried again."""
        while True:
            try:
                await self.take_over()
            except Exception as error:
                log.warning("cannot look for dead workers", error=type(error).__name__, exc_info=unless_passing(error))
            await asyncio.sleep(self._pause)

    async def take_over(self) -> int:
        """Release what dead workers were at; returns how many executions that were."""
        try:
            await self._end_stranded_sessions()
        except Exception as error:
            # It may not be ours to end sessions on this server; the dead are taken over from all the same.
            about = {"error": type(error).__name__, "exc_info": unless_passing(error)}
            log.warning("cannot end sessions of processes that are gone", **about)
        if not self._heartbeat.may_judge:
            return 0
        async with self._database.transaction() as session:
            released = await release_dead(session, self._silence)
            await forget_workers(session, FORGET_AFTER * self._silence)
        metrics.TAKEOVERS.inc(released)
        if released:
            log.warning("took over from dead workers", executions=released)
        return released

    async def _end_stranded_sessions(self) -> None:
        """Before anything is released: they may hold the locks of it, and that under which all workers claim."""
        if self._database.engine.dialect.name != "postgresql":
            return
        async with self._database.transaction() as session:
            ended = await end_stranded_sessions(session, STRANDED_AFTER)
        if ended:
            log.warning("ended sessions of processes that are gone", sessions=ended)
