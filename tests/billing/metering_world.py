"""Users with subscriptions, counted runs, and the server that stands in for Stripe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import SecretStr

from bloxserver.billing.client import Stripe, get_stripe
from bloxserver.billing.metering import PeriodKey, read_uncut_periods
from bloxserver.billing.prices import METERS, PRO_LOOKUP_KEY, RUNS_METER, STORAGE_METER
from bloxserver.billing.reconcile import Reconciler, Result
from bloxserver.billing.reports import send_due
from bloxserver.billing.storage import sample_storage
from bloxserver.billing.sync import sync_customer
from bloxserver.clock import now
from bloxserver.engine.background.metering import Metering
from bloxserver.models.database import Database
from bloxserver.models.enums import Tier, TriggerType
from bloxserver.models.tables import (
    BillingPeriodRecord,
    FlowRecord,
    MeterReportRecord,
    StorageSampleRecord,
    StoredBytesRecord,
    UsageRecord,
    UserRecord,
)
from bloxserver.models.upsert import insert_into
from bloxserver.queries.usage import Period, period_at
from bloxserver.services.accepted_runs import AcceptedRun, insert_runs
from bloxserver.settings import Settings
from tests.factories import create_flow, create_user
from tests.services.test_accepted_runs import execution_of
from tests.stripe_server import DAY, StripeServer, stripe_server

SECRET_KEY = "rk_test_metering"


@dataclass
class Subscriber:
    user_id: UUID
    flow_id: UUID
    customer_id: str
    subscription: dict[str, Any] = field(default_factory=dict)


@dataclass
class MeteringWorld:
    database: Database
    server: StripeServer
    stripe: Stripe

    async def subscriber(self, status: str = "active", **values: Any) -> Subscriber:
        """A user with a subscription that was read from Stripe."""
        customer_id: str = self.server.add("customer", "cus")["id"]
        async with self.database.sessions() as session:
            user = await create_user(session, tier=Tier.FREE, stripe_customer_id=customer_id)
            flow: FlowRecord = await create_flow(session, user)
        subscription = self.server.subscribe(customer_id, PRO_LOOKUP_KEY, status, **values)
        subscriber = Subscriber(user.id, flow.id, customer_id, subscription)
        await self.sync(subscriber)
        return subscriber

    async def sync(self, subscriber: Subscriber) -> None:
        async with self.database.transaction() as session:
            await sync_customer(session, self.stripe, subscriber.customer_id)

    async def change(self, subscriber: Subscriber, status: str | None = None, **item: int) -> None:
        """Change the subscription at Stripe, and read it."""
        if status is not None:
            subscriber.subscription["status"] = status
        subscriber.subscription["items"]["data"][0].update(item)
        await self.sync(subscriber)

    async def period(self, subscriber: Subscriber, moment: datetime | None = None) -> Period:
        async with self.database.sessions() as session:
            user = await session.get_one(UserRecord, subscriber.user_id)
            return period_at(moment or now(), user.current_period_start, user.current_period_end)

    async def accept(self, subscriber: Subscriber, number: int = 1, period: Period | None = None) -> None:
        """Accept runs, each in a transaction of its own."""
        counted = period or await self.period(subscriber)
        for _ in range(number):
            values = execution_of(subscriber.flow_id, trigger_type=TriggerType.MANUAL)
            async with self.database.transaction() as session:
                await insert_runs(session, [AcceptedRun(values, subscriber.user_id, counted)])

    async def store(self, subscriber: Subscriber, number: int) -> None:
        """Let the user store this number of bytes, besides those of rows."""
        values = {"user_id": subscriber.user_id, "source": "tests", "slot": 0, "bytes": number}
        async with self.database.transaction() as session:
            stored = insert_into(session, StoredBytesRecord).values(values)
            await session.execute(
                stored.on_conflict_do_update(index_elements=["user_id", "source", "slot"], set_={"bytes": number})
            )

    async def sample_all(self) -> None:
        await Metering(self.database, self.stripe).sample()

    async def sample(self, moment: datetime | None = None) -> None:
        async with self.database.transaction() as session:
            assert await sample_storage(session, moment or now()) is False

    async def samples(self, subscriber: Subscriber) -> list[tuple[date, int]]:
        """The days with a sample, and the billed megabytes."""
        sample = StorageSampleRecord
        found = sa.select(sample.day, sample.billed_megabytes).where(sample.user_id == subscriber.user_id)
        async with self.database.sessions() as session:
            return [(row[0], row[1]) for row in await session.execute(found.order_by(sample.day))]

    async def cut(self) -> int:
        return await Metering(self.database, self.stripe).cut()

    async def send(self) -> int:
        return await send_due(self.database, self.stripe)

    async def report(self) -> None:
        await self.cut()
        await self.send()

    async def reports(self) -> Sequence[MeterReportRecord]:
        async with self.database.sessions() as session:
            return (await session.scalars(sa.select(MeterReportRecord).order_by(MeterReportRecord.created_at))).all()

    async def change_reports(self, **values: Any) -> None:
        async with self.database.transaction() as session:
            await session.execute(sa.update(MeterReportRecord).values(values))

    async def make_due(self) -> None:
        """Let the time of the next attempts come."""
        async with self.database.transaction() as session:
            due = sa.update(MeterReportRecord).where(MeterReportRecord.due_at.is_not(None))
            await session.execute(due.values(due_at=now() - timedelta(seconds=1)))

    async def counted(self, subscriber: Subscriber) -> tuple[int, int]:
        """The runs that were counted in all periods, and those of them that were cut."""
        usage = UsageRecord
        sums = sa.select(sa.func.sum(usage.workflow_runs), sa.func.sum(usage.last_synced_runs))
        async with self.database.sessions() as session:
            row = (await session.execute(sums.where(usage.user_id == subscriber.user_id))).one()
        return int(row[0] or 0), int(row[1] or 0)

    def at_stripe(self, subscriber: Subscriber, period: Period | None = None, *, meter: str = RUNS_METER) -> int:
        times = () if period is None else (period.start.timestamp(), period.end.timestamp())
        return self.server.sum_of(subscriber.customer_id, meter, *times)

    def stored_at_stripe(self, subscriber: Subscriber, period: Period | None = None) -> int:
        """The megabyte-days that Stripe bills."""
        return self.at_stripe(subscriber, period, meter=STORAGE_METER)

    async def uncut(self) -> Sequence[PeriodKey]:
        async with self.database.sessions() as session:
            return await read_uncut_periods(session, now())

    async def billed(self, subscriber: Subscriber) -> list[tuple[datetime, bool]]:
        period = BillingPeriodRecord
        found = sa.select(period.period_start, period.is_billed).where(period.user_id == subscriber.user_id)
        async with self.database.sessions() as session:
            return [(row[0], row[1]) for row in await session.execute(found.order_by(period.period_start))]

    async def reconcile(
        self, *, dry_run: bool = False, settled: timedelta = timedelta(0), meter: str = RUNS_METER
    ) -> list[Result]:
        """The results of this meter."""
        reconciler = Reconciler(self.database, self.stripe, settled=settled)
        results = [result async for result in reconciler.reconcile_all(dry_run=dry_run)]
        return [result for result in results if result.usage.meter == meter]


@asynccontextmanager
async def metering_world(database: Database) -> AsyncIterator[MeteringWorld]:
    async with stripe_server() as server:
        for event_name in METERS:
            server.add("billing.meter", "mtr", event_name=event_name, status="active")
        stripe = get_stripe(Settings(stripe_secret_key=SecretStr(SECRET_KEY), stripe_api_base=server.url))
        assert stripe is not None
        yield MeteringWorld(database, server, stripe)


def seconds_ago(seconds: float) -> int:
    return int(time.time() - seconds)


def days_ago(days: float) -> int:
    return seconds_ago(days * DAY)


def time_of(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def gather(*tasks: Any) -> list[Any]:
    return list(await asyncio.gather(*tasks))
