"""Processes that meter usage are killed, and Stripe fails: each run and each day of storage is billed once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from bloxserver.billing.prices import STORAGE_METER
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord
from bloxserver.settings import Settings
from tests.billing.metering_process import DAYS
from tests.billing.metering_world import SECRET_KEY, MeteringWorld, Subscriber, metering_world, seconds_ago
from tests.engine.retention_world import until
from tests.processes import bloxserver
from tests.stripe_server import DAY, Call

MODES = ("accept", "report", "accept", "report", "report")
FAULTS = {"lost": 0.1, "500": 0.1, "429": 0.05}
"""Probabilities of faults in requests that send usage."""


@pytest.fixture
async def metering(live_database: Database) -> AsyncIterator[MeteringWorld]:
    async with metering_world(live_database) as metering:
        yield metering


class Processes:
    """Processes that are killed at random, and replaced."""

    def __init__(self, settings: Settings, metering: MeteringWorld, log: Path) -> None:
        self._arguments = settings.database_url, metering.server.url
        self._log = log
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, mode: str) -> None:
        command = [sys.executable, "-m", "tests.billing.metering_process", mode, *self._arguments]
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        with self._log.open("ab") as log:
            directory = Path(__file__).parents[2]
            self._running.append((mode, subprocess.Popen(command, env=kept, cwd=directory, stdout=log, stderr=log)))

    def kill(self, number: int) -> str:
        mode, process = self._running.pop(number)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL, self._log.read_text()
        return mode

    def replace_one(self) -> None:
        self.start(self.kill(random.randrange(len(self._running))))  # noqa: S311

    def kill_all(self, mode: str | None = None) -> None:
        for number in reversed(range(len(self._running))):
            if mode in (None, self._running[number][0]):
                self.kill(number)


@contextmanager
def killed_at_the_end(processes: Processes) -> Iterator[None]:
    try:
        yield
    finally:
        processes.kill_all()


class Executions:
    """Counts accepted executions, also those that it deletes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.deleted: Counter[UUID] = Counter()

    async def delete_some(self, number: int = 20) -> None:
        some = sa.select(ExecutionRecord.id).order_by(sa.func.random()).limit(number)
        async with self._database.transaction() as session:
            deleted = sa.delete(ExecutionRecord).where(ExecutionRecord.id.in_(some)).returning(ExecutionRecord.flow_id)
            flow_ids = list(await session.scalars(deleted))
        self.deleted.update(flow_ids)

    async def accepted(self) -> Counter[UUID]:
        """The number of each flow."""
        rows = sa.select(ExecutionRecord.flow_id, sa.func.count()).group_by(ExecutionRecord.flow_id)
        async with self._database.sessions() as session:
            left = {row[0]: row[1] for row in await session.execute(rows)}
        return Counter(left) + self.deleted


def fail_at_random(call: Call) -> str | None:
    if not call.path.endswith("meter_events"):
        return None
    return random.choices([*FAULTS, None], [*FAULTS.values(), 1 - sum(FAULTS.values())])[0]  # noqa: S311


async def renew(metering: MeteringWorld, subscriber: Subscriber) -> None:
    """A period ends, and the next one begins."""
    start = seconds_ago(0)
    await metering.change(subscriber, current_period_start=start, current_period_end=start + 30 * DAY)


async def test_each_accepted_run_is_counted_and_billed_once(
    live_settings: Settings, metering: MeteringWorld, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kills: int = request.config.getoption("--metering-kills")
    billed = [await metering.subscriber(period_start=seconds_ago(DAY) // 60 * 60) for _ in range(4)]
    trial = await metering.subscriber("trialing")
    executions = Executions(metering.database)
    metering.server.fault = fail_at_random
    processes = Processes(live_settings, metering, tmp_path / "processes.log")
    with killed_at_the_end(processes):
        for mode in MODES:
            processes.start(mode)
        for number in range(kills):
            await wait_for_progress(metering, executions)
            processes.replace_one()
            await executions.delete_some()
            await metering.make_due()  # instead of waiting for the next attempts
            if number % 5 == 3:
                await renew(metering, random.choice(billed))  # noqa: S311
        processes.kill_all("accept")
    metering.server.fault = lambda call: None
    while await metering.uncut() or any(report.sent_at is None for report in await metering.reports()):
        await metering.make_due()
        await metering.report()
    accepted = await executions.accepted()
    for subscriber in billed:
        number = accepted[subscriber.flow_id]
        assert (await metering.counted(subscriber), metering.at_stripe(subscriber)) == ((number, number), number)
    assert (await metering.counted(trial))[0] == accepted[trial.flow_id] > 0
    assert metering.at_stripe(trial) == 0
    results = await metering.reconcile()
    assert [str(result) for result in results if result.differs or result.resent] == []
    sums = [accepted[subscriber.flow_id] for subscriber in billed]
    requests = len([call for call in metering.server.calls if call.path.endswith("meter_events")])
    sys.stdout.write(
        f"kills {kills}, accepted {accepted.total()}, of these deleted {executions.deleted.total()}, "
        f"billed {sums}, requests {requests}, events {len(metering.server.meter_events)}\n"
    )


async def test_each_day_of_storage_is_sampled_and_billed_once(
    live_settings: Settings, metering: MeteringWorld, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kills: int = request.config.getoption("--metering-kills")
    start = (seconds_ago(0) // DAY - DAYS + 1) * DAY  # the first midnight that is sampled
    period: dict[str, Any] = {"period_start": start, "period_end": start + (DAYS + 1) * DAY}
    billed = [await metering.subscriber(**period) for _ in range(4)]
    trial = await metering.subscriber("trialing", **period)
    metering.server.fault = fail_at_random
    processes = Processes(live_settings, metering, tmp_path / "processes.log")

    async def sampled() -> int:
        return sum([len(await metering.samples(subscriber)) for subscriber in billed])

    async def change_storage() -> None:
        for subscriber in (*billed, trial):
            await metering.store(subscriber, random.randint(9 * 10**9, 60 * 10**9))  # noqa: S311

    async def all_are_sampled() -> bool:
        await change_storage()
        return await sampled() >= len(billed) * DAYS

    with killed_at_the_end(processes):
        for mode in ("sample", "report", "sample", "report", "sample"):
            processes.start(mode)
        for _ in range(kills):
            before, calls = await sampled(), len(metering.server.calls)
            await change_storage()

            async def has_progressed(before: int = before, calls: int = calls) -> bool:
                number = await sampled()
                return number >= len(billed) * DAYS or (number > before and len(metering.server.calls) > calls)

            await until(has_progressed, interval_seconds=0.02)
            processes.replace_one()
            await metering.make_due()  # instead of waiting for the next attempts
        await until(all_are_sampled, interval_seconds=0.05)
    metering.server.fault = lambda call: None
    while any(report.sent_at is None for report in await metering.reports()):
        await metering.make_due()
        await metering.send()
    reports, sums = await metering.reports(), []
    for subscriber in billed:
        values = [value for _, value in await metering.samples(subscriber)]
        reported = [report.value for report in reports if report.user_id == subscriber.user_id]
        assert sorted(reported) == sorted(value for value in values if value)
        assert metering.stored_at_stripe(subscriber) == sum(values) > 0
        sums.append(sum(values))
    assert (await metering.samples(trial), metering.stored_at_stripe(trial)) == ([], 0)
    results = await metering.reconcile(meter=STORAGE_METER)
    assert [str(result) for result in results if result.differs or result.resent] == []
    requests = len([call for call in metering.server.calls if call.path.endswith("meter_events")])
    sys.stdout.write(f"kills {kills}, billed {sums}, requests {requests}, events {len(metering.server.meter_events)}\n")


async def wait_for_progress(metering: MeteringWorld, executions: Executions) -> None:
    """Wait for more runs and more requests to Stripe."""
    before, calls = (await executions.accepted()).total(), len(metering.server.calls)
    more = random.randint(1, 40)  # noqa: S311

    async def has_progressed() -> bool:
        return (
            len(metering.server.calls) >= calls + more // 4 and (await executions.accepted()).total() >= before + more
        )

    await until(has_progressed, interval_seconds=0.05)


class TestCommand:
    async def run(
        self, settings: Settings, metering: MeteringWorld, *arguments: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {"DATABASE_URL": settings.database_url, "STRIPE_API_BASE": metering.server.url}
        environment["STRIPE_SECRET_KEY"] = SECRET_KEY
        return await asyncio.to_thread(bloxserver, *arguments, **environment)

    async def test_reconcile_prints_and_repairs_differences(
        self, live_settings: Settings, metering: MeteringWorld
    ) -> None:
        subscribers = [await metering.subscriber() for _ in range(2)]
        await metering.accept(subscribers[0], 3)
        await metering.cut()
        await metering.change_reports(due_at=None, error="404 resource_missing")
        subscribers[1].subscription["status"] = "canceled"
        dry = await self.run(live_settings, metering, "billing", "reconcile", "--dry-run")
        shown, total = dry.stdout.splitlines()
        assert shown.startswith(f"user {subscribers[0].user_id}, period from ")
        assert shown.endswith("counted 3, cut 3, reported 3, sent 0, at Stripe 0; sent again 1, confirmed 0")
        assert total == "periods: 2, differences: 1, customers read: 0, not read: 0"
        assert (dry.returncode, metering.at_stripe(subscribers[0])) == (1, 0)
        done = await self.run(live_settings, metering, "billing", "reconcile")
        shown, total = done.stdout.splitlines()
        assert shown.endswith("counted 3, cut 3, reported 3, sent 3, at Stripe 3; sent again 1, confirmed 0")
        assert total == "periods: 2, differences: 0, customers read: 2, not read: 0"
        assert (done.returncode, metering.at_stripe(subscribers[0])) == (0, 3)
        assert (await metering.period(subscribers[1])).start != (await metering.billed(subscribers[1]))[0][0]
        again = await self.run(live_settings, metering, "billing", "reconcile")
        assert again.stdout == "periods: 2, differences: 0, customers read: 2, not read: 0\n"

    async def test_reconcile_fails_without_stripe(self, live_settings: Settings, metering: MeteringWorld) -> None:
        await metering.subscriber()
        metering.server.fault = lambda call: "429"
        refused = await self.run(live_settings, metering, "billing", "reconcile")
        assert (refused.returncode, refused.stderr) == (
            1,
            "bloxserver: Stripe cannot be reached, or has refused the request\n",
        )
        disabled = bloxserver("billing", "reconcile", DATABASE_URL=live_settings.database_url)
        assert (disabled.returncode, disabled.stderr) == (1, "bloxserver: STRIPE_SECRET_KEY is not set\n")

    async def test_last_runs_of_a_deleted_user_are_reported(
        self, live_settings: Settings, metering: MeteringWorld
    ) -> None:
        subscriber = await metering.subscriber()
        await metering.accept(subscriber, 3)
        done = await self.run(live_settings, metering, "users", "delete", str(subscriber.user_id), "--yes")
        assert done.returncode == 0, done.stderr
        assert await metering.counted(subscriber) == (0, 0)
        await metering.send()
        assert metering.at_stripe(subscriber) == 3
