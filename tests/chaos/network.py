"""Faults of the network between PostgreSQL and some processes, one worker and one replica: slow, cut, silent."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import sqlalchemy as sa

from bloxserver.models.tables import ExecutionRecord, ExecutionStatus
from tests.chaos.checks import wait_for_all_ends
from tests.chaos.processes import Process, Timing
from tests.chaos.proxy import Proxy
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.scenario import ScenarioRun, every_tenth, run_scenario
from tests.chaos.waiting import wait_until
from tests.chaos.workers import database_time, workers_alive_since
from tests.chaos.workspace import Workspace

DELAY_SECONDS = 0.15
RECOVERY_SECONDS = 30
MAX_RECOVERY_SECONDS = 30
MAX_ATTEMPTS = 200
"""Attempts to silence the network during a claim."""
FINAL_EXECUTIONS = 5

HOLDS_LOCK = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = ANY(:pids)")


class Network:
    """Injects network faults and measures the recovery."""

    def __init__(self, run: ScenarioRun, proxy: Proxy, report: Report, proxied_worker: str) -> None:
        self.run = run
        self.proxy = proxy
        self.report = report
        self.proxied_worker = proxied_worker
        """The id of the worker that connects through the proxy."""

    async def slow_down(self, seconds: float) -> None:
        self.proxy.slow_down(DELAY_SECONDS)
        await asyncio.sleep(seconds)
        await self._heal("slow")

    async def cut(self, seconds: float) -> None:
        await self.proxy.cut()
        await asyncio.sleep(seconds)
        await self._heal("cut")

    async def silence(self, name: str, begin: Callable[[], Awaitable[None]]) -> None:
        """Silence the network until other workers recovered the executions, and past the heartbeat timeout."""
        heartbeat_timeout = self.run.installation.timing.heartbeat_timeout
        await begin()
        started = time.monotonic()
        held = await self._claimed_by_proxied_worker()
        took = await wait_until(f"recovery ({name})", lambda: self._are_recovered(held), MAX_RECOVERY_SECONDS * 3)
        self.report.record(f"{name}: executions of the silent worker", len(held))
        self.report.expect_at_most(f"{name}: all recovered after (s)", took, MAX_RECOVERY_SECONDS)
        await self._measure_other_workers(name)
        await asyncio.sleep(max(0.0, started + heartbeat_timeout * 1.5 - time.monotonic()))
        await self._heal(name)

    async def stop_traffic(self) -> None:
        self.proxy.stop_traffic()

    async def stop_traffic_during_claim(self) -> None:
        """Stop the traffic while the proxied worker has an open transaction with an advisory lock."""
        for _ in range(MAX_ATTEMPTS):
            self.proxy.stop_traffic_in_transaction()
            await wait_until("a transaction of a proxied process", self._traffic_is_stopped, 30)
            if await self._proxied_process_holds_lock():
                return
            self.proxy.heal()
        raise AssertionError("no claim was interrupted")

    async def _heal(self, name: str) -> None:
        moment = await database_time(self.run.database)
        self.proxy.heal()
        heartbeats, accepts = await asyncio.gather(
            wait_until(
                "a heartbeat of the proxied worker", lambda: self._sends_heartbeats(moment), RECOVERY_SECONDS * 3
            ),
            wait_until("the proxied replica to accept a run", self._accepts, RECOVERY_SECONDS * 3),
        )
        self.report.expect_at_most(f"{name}: worker sends heartbeats again after (s)", heartbeats, RECOVERY_SECONDS)
        self.report.expect_at_most(f"{name}: replica accepts again after (s)", accepts, RECOVERY_SECONDS)

    async def _measure_other_workers(self, name: str) -> None:
        """Measure the time until other workers start new executions."""
        now = time.monotonic()
        calls = self.run.recorder.all_calls

        async def starts() -> bool:
            return any(call.path == "first" and call.started > now for call in calls[-100:])

        took = await wait_until(f"other workers to start executions ({name})", starts, MAX_RECOVERY_SECONDS * 3)
        self.report.record(f"{name}: other workers continue after (s)", took)

    async def _traffic_is_stopped(self) -> bool:
        return self.proxy.is_silent

    async def _proxied_process_holds_lock(self) -> bool:
        async with self.run.database.transaction(read_only=True) as session:
            return bool(await session.scalar(HOLDS_LOCK, {"pids": list(self.proxy.server_processes)}))

    async def _claimed_by_proxied_worker(self) -> list[object]:
        held = sa.select(ExecutionRecord.id).where(*self._proxied_worker_claim())
        async with self.run.database.transaction(read_only=True) as session:
            return list(await session.scalars(held))

    async def _are_recovered(self, held: list[object]) -> bool:
        still = sa.select(sa.func.count()).where(ExecutionRecord.id.in_(held), *self._proxied_worker_claim())
        async with self.run.database.transaction(read_only=True) as session:
            return await session.scalar(still) == 0

    def _proxied_worker_claim(self) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            ExecutionRecord.status == ExecutionStatus.RUNNING,
            ExecutionRecord.lease.is_not(None),
            ExecutionRecord.worker_id == self.proxied_worker,
        )

    async def _sends_heartbeats(self, moment: datetime) -> bool:
        return self.proxied_worker in await workers_alive_since(self.run.database, moment)

    async def _accepts(self) -> bool:
        return await self.run.client.accepts(self.run.installation.replicas[0], self.run.flow)


async def network(
    workspace: Workspace, *, rounds: int, seconds: float, per_second: float, timing: Timing, seed: int
) -> Report:
    chance = random.Random(seed)

    async def hold(call: Call) -> None:
        await asyncio.sleep(chance.uniform(0, 0.5))

    report = Report(f"network to PostgreSQL slow, cut, silent; {rounds} rounds, seed {seed}")
    async with (
        Proxy(sa.make_url(workspace.database_url)).serving() as proxy,
        run_scenario(workspace, timing, hold=hold, fails=every_tenth) as run,
    ):
        network, direct_worker = await _start_processes(run, proxy, workspace, report)
        load = run.load(per_second=per_second)
        await run.wait_until_accepted(10)
        for number in range(1, rounds + 1):
            await network.slow_down(seconds)
            await network.cut(seconds)
            await network.silence(f"silent, {number}", network.stop_traffic)
            await network.silence(f"silent while claiming, {number}", network.stop_traffic_during_claim)
        await load.stop()
        await wait_for_all_ends(run.database, 120)
        await _check_proxied_worker(run, direct_worker, report)
        await run.check(report)
    return report


async def _start_processes(
    run: ScenarioRun, proxy: Proxy, workspace: Workspace, report: Report
) -> tuple[Network, Process]:
    """Start the processes. The first replica and the first worker connect through the proxy."""
    installation = run.installation
    proxy_url = proxy.url(workspace.database_url)
    installation.add_worker(database_url=proxy_url)
    moment = await database_time(run.database)
    await installation.start()
    [proxied_worker] = await workers_alive_since(run.database, moment)
    installation.add_replica(run_worker=False, database_url=proxy_url)
    installation.add_replica(run_worker=False)
    direct_worker = installation.add_worker()
    await installation.start()
    await run.start_flow()
    return Network(run, proxy, report, proxied_worker), direct_worker


async def _check_proxied_worker(run: ScenarioRun, direct_worker: Process, report: Report) -> None:
    """Check that the proxied worker works normally again."""
    report.expect_equal("exit status of the other worker", await direct_worker.end(signal.SIGTERM) or 0, 0)
    run.installation.workers.remove(direct_worker)
    await run.run(FINAL_EXECUTIONS)
    took = await wait_for_all_ends(run.database, 60)
    report.record(f"{FINAL_EXECUTIONS} executions on the proxied worker alone took (s)", took)
