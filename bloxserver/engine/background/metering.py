"""Reports usage to Stripe every minute, and compares it with Stripe's sums every day."""

from __future__ import annotations

import structlog

from bloxserver.billing.client import Stripe
from bloxserver.billing.metering import PeriodKey, cut_period, read_uncut_periods
from bloxserver.billing.reconcile import Reconciler
from bloxserver.billing.reports import delete_old_reports, send_due
from bloxserver.billing.storage import delete_old_samples, sample_storage
from bloxserver.clock import now
from bloxserver.engine.loops import PollLoop
from bloxserver.engine.retry import process_each
from bloxserver.errors import BloxError
from bloxserver.models.database import Database

log = structlog.stdlib.get_logger("bloxserver.billing")

METERING_SECONDS = 60.0
RECONCILIATION_SECONDS = 600.0
FIRST_PAUSE_SECONDS = 60.0
"""Seconds from the start of the process to its first comparison."""


class Metering:
    """Puts runs and stored bytes into reports, and sends them. It runs on every worker; one sends a report."""

    def __init__(self, database: Database, stripe: Stripe, *, interval_seconds: float = METERING_SECONDS) -> None:
        self._database = database
        self._stripe = stripe
        self._interval_seconds = interval_seconds
        self._loop = PollLoop(
            self._poll, failure="reporting usage to Stripe failed", retry_seconds=interval_seconds, jitter=0.2
        )

    async def run(self) -> None:
        """Report usage until cancelled."""
        await self._loop.run()

    async def _poll(self) -> float:
        try:
            await self.cut()
            await self.sample()
        finally:
            # Reports are sent even if a counter is locked.
            await send_due(self._database, self._stripe)
        return self._interval_seconds

    async def cut(self) -> int:
        """Put the runs of all billed periods into reports. Returns the number of periods that had some."""
        async with self._database.transaction(read_only=True) as session:
            keys = await read_uncut_periods(session, now())

        async def cut(key: PeriodKey) -> bool:
            async with self._database.transaction() as session:
                return await cut_period(session, key) > 0

        return await process_each(keys, cut)

    async def sample(self) -> None:
        """Sample what the billed users without a sample of today store, and put it into reports."""
        is_left = True
        while is_left:
            async with self._database.transaction() as session:
                is_left = await sample_storage(session, now())


class Reconciliation:
    """Compares each billed period with Stripe once a day. It runs on every worker; one of them compares a period."""

    def __init__(
        self,
        database: Database,
        stripe: Stripe,
        *,
        interval_seconds: float = RECONCILIATION_SECONDS,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._database = database
        self._reconciler = Reconciler(database, stripe)
        self._interval_seconds = interval_seconds
        self._loop = PollLoop(
            self._poll,
            failure="comparing usage with Stripe failed",
            retry_seconds=interval_seconds,
            first_pause_seconds=first_pause_seconds,
            jitter=0.2,
        )

    async def run(self) -> None:
        """Compare until cancelled."""
        await self._loop.run()

    async def _poll(self) -> float:
        try:
            await self._reconciler.sync_customers(only_due=True)
            await self._reconciler.reconcile_due()
        except BloxError as error:
            log.warning("usage not compared with Stripe", error=error.code)
        for delete_old in (delete_old_reports, delete_old_samples):
            is_left = True
            while is_left:
                async with self._database.transaction() as session:
                    is_left = await delete_old(session, now())
        return self._interval_seconds
