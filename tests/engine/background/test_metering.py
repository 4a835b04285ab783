"""The loops that report runs, and that compare them with Stripe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from bloxserver.billing.reconcile import INTERVAL
from bloxserver.clock import now
from bloxserver.engine.background.metering import Metering, Reconciliation
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.tables import BillingPeriodRecord, MeterReportRecord, StorageSampleRecord, UserRecord
from bloxserver.settings import Settings
from tests.billing.metering_world import SECRET_KEY, MeteringWorld, metering_world
from tests.engine.retention_world import until


@pytest.fixture
async def metering(live_database: Database) -> AsyncIterator[MeteringWorld]:
    async with metering_world(live_database) as metering:
        yield metering


@asynccontextmanager
async def running(loop: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(loop.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_runs_are_reported(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    async with running(Metering(metering.database, metering.stripe, interval_seconds=0.02)):
        await metering.accept(subscriber, 2)
        await until(is_true(lambda: metering.at_stripe(subscriber) == 2))
        await metering.accept(subscriber, 5)
        await until(is_true(lambda: metering.at_stripe(subscriber) == 7))


async def test_storage_is_sampled_and_reported(metering: MeteringWorld) -> None:
    subscribers = [await metering.subscriber() for _ in range(2)]
    await metering.store(subscribers[0], 13 * 10**9)
    async with running(Metering(metering.database, metering.stripe, interval_seconds=0.02)):
        await until(is_true(lambda: metering.stored_at_stripe(subscribers[0]) == 3_000))
    assert [len(await metering.samples(subscriber)) for subscriber in subscribers] == [1, 1]


async def test_differences_are_repaired_and_old_reports_and_samples_are_deleted(metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3)
    long_ago = now() - timedelta(days=101)
    old = {name: getattr(subscriber, name) for name in ("user_id", "customer_id")}
    async with metering.database.transaction() as session:
        await session.execute(sa.update(BillingPeriodRecord).values(created_at=now() - INTERVAL))
        await session.execute(sa.update(UserRecord).values(stripe_synced_at=now() - INTERVAL))
        times = dict.fromkeys(("period_start", "timestamp", "sent_at", "created_at"), long_ago)
        sample = {"day": long_ago.date(), "period_start": long_ago, "bytes": 1, "billed_megabytes": 0}
        await session.execute(sa.insert(StorageSampleRecord).values(user_id=subscriber.user_id, **sample))
        values = {"event_name": "x", "identifier": "old", "value": 1}
        await session.execute(sa.insert(MeterReportRecord).values(old | values | times))
    subscriber.subscription["status"] = "past_due"
    loop = Reconciliation(metering.database, metering.stripe, interval_seconds=0.02, first_pause_seconds=0)

    async def is_done() -> bool:
        [billed] = await metering.billed(subscriber)
        is_deleted = "old" not in {report.identifier for report in await metering.reports()}
        return not billed[1] and is_deleted and await metering.samples(subscriber) == []

    async with running(loop):
        await until(is_done, interval_seconds=0.02)


async def test_worker_with_stripe_reports_runs(live_settings: Settings, metering: MeteringWorld) -> None:
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3)
    with_stripe = {"stripe_secret_key": SecretStr(SECRET_KEY), "stripe_api_base": metering.server.url}
    for changes in ({}, with_stripe):
        engine = Engine(live_settings.model_copy(update=changes), metering.database, run_worker=True)
        await engine.start()
        if changes:
            await until(is_true(lambda: metering.at_stripe(subscriber) == 3))
        await engine.stop()
        assert metering.at_stripe(subscriber) == (3 if changes else 0)


def is_true(condition: Callable[[], bool]) -> Any:
    async def check() -> bool:
        return condition()

    return check
