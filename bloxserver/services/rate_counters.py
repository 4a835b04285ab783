"""Shares the counters of rate limits between processes, about once a second."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import sqlalchemy as sa
import structlog

from bloxserver.models.database import Database, begin_writing
from bloxserver.models.tables import RateCounterRecord
from bloxserver.models.upsert import insert_into
from bloxserver.services.rate_limits import RateLimiter

log = structlog.stdlib.get_logger("bloxserver")

SHARE_SECONDS = 1.0
MAX_SHARED = 1_000
"""Counters of one limit that a process shares at a time, the largest first."""
KEPT_WINDOWS = 2

AddCounts = Callable[[int, Mapping[str, int]], Awaitable[dict[str, int]]]
"""Adds counts to those of all processes in a window, and returns the totals."""


class CounterSharing:
    """Exchanges the counts of one process with those of all processes."""

    def __init__(self, limiter: RateLimiter, add_counts: AddCounts) -> None:
        self._limiter = limiter
        self._add_counts = add_counts
        self._available = True

    async def share(self) -> float:
        """Exchange the counts once. Returns the seconds until the next exchange. Failures are logged once."""
        for storage in self._limiter.storages.values():
            counts = storage.take_unshared(MAX_SHARED)
            window = storage.window
            if not counts:
                continue
            try:
                totals = await self._add_counts(window, counts)
            except Exception as error:
                storage.return_unshared(window, counts)
                self._report(error)
                break
            storage.set_totals(window, totals)
            self._report(None)
        return SHARE_SECONDS

    def _report(self, error: Exception | None) -> None:
        if self._available and error is not None:
            log.warning("rate limits count only requests to this process", error=type(error).__name__)
        elif not self._available and error is None:
            log.info("rate limits count requests to all processes again")
        self._available = error is None


class DatabaseCounters:
    """Counters in the database. Counters of past windows are deleted."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest_window = 0

    async def add(self, window: int, counts: Mapping[str, int]) -> dict[str, int]:
        # In the same order in all processes, so that their transactions do not deadlock.
        rows = [{"minute": window, "key": key, "count": counts[key]} for key in sorted(counts)]
        async with self._database.transaction() as session:
            await begin_writing(session)
            if window > self._newest_window:
                old = RateCounterRecord.minute < window - KEPT_WINDOWS
                await session.execute(sa.delete(RateCounterRecord).where(old))
            insert = insert_into(session, RateCounterRecord).values(rows)
            added = await session.execute(
                insert.on_conflict_do_update(
                    index_elements=[RateCounterRecord.minute, RateCounterRecord.key],
                    set_={"count": RateCounterRecord.count + insert.excluded.count},
                ).returning(RateCounterRecord.key, RateCounterRecord.count)
            )
            totals = {key: int(count) for key, count in added}
        self._newest_window = max(window, self._newest_window)
        return totals
