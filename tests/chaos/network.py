"""The network between some processes and PostgreSQL: slow, cut, silent; a worker and a replica stand behind it."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import sqlalchemy as sa

from bloxserver.models.tables import ExecutionRecord, ExecutionStatus
from tests.chaos.evidence import until_all_ended
from tests.chaos.place import Place
from tests.chaos.processes import Process, Timing
from tests.chaos.proxy import Proxy
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.stage import Stage, every_tenth, stage
from tests.chaos.waiting import until
from tests.chaos.workers import beating_since, database_time

DELAY_SECONDS = 0.15
RECOVERY_SECONDS = 30
TAKE_OVER_SECONDS = 30
ATTEMPTS = 200
"""At catching the worker while it claims."""
PROOF = 5

HOLDS_LOCK = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = ANY(:pids)")


class Network:
    """One story, fault by fault."""

    def __init__(self, scene: Stage, proxy: Proxy, report: Report, far_worker: str) -> None:
        self.scene = scene
        self.proxy = proxy
        self.report = report
        self.far_worker = far_worker
        """The id of the worker behind the proxy."""

    async def be_slow(self, seconds: float) -> None:
        self.proxy.slow_down(DELAY_SECONDS)
        await asyncio.sleep(seconds)
        await self._heal("slow")

    async def be_cut(self, seconds: float) -> None:
        await self.proxy.cut()
        await asyncio.sleep(seconds)
        await self._heal("cut")

    async def be_silent(self, name: str, begin: Callable[[], Awaitable[None]]) -> None:
        """Until others have what the silent worker had, and it has been silent for longer than it may."""
        dead_after = self.scene.installation.timing.dead_after
        await begin()
        begun = time.monotonic()
        held = await self._held_by_far_worker()
        took = await until(f"take-over ({name})", lambda: self._given_up(held), TAKE_OVER_SECONDS * 3)
        self.report.figure(f"{name}: executions of the silent worker", len(held))
        self.report.at_most(f"{name}: all taken over after (s)", took, TAKE_OVER_SECONDS)
        await self._goes_on_without(name)
        await asyncio.sleep(max(0.0, begun + dead_after * 1.5 - time.monotonic()))
        await self._heal(name)

    async def fall_silent(self) -> None:
        self.proxy.fall_silent()

    async def fall_silent_while_claiming(self) -> None:
        """When PostgreSQL waits for the rest of a transaction of the worker that holds an advisory lock."""
        for _ in range(ATTEMPTS):
            self.proxy.fall_silent_in_transaction()
            await until("a transaction", self._is_silent, 30)
            if await self._far_side_holds_lock():
                return
            self.proxy.heal()
        raise AssertionError("the worker was never caught while it claimed")

    async def _heal(self, name: str) -> None:
        moment = await database_time(self.scene.database)
        self.proxy.heal()
        beats, accepts = await asyncio.gather(
            until("the far worker to beat", lambda: self._beats(moment), RECOVERY_SECONDS * 3),
            until("the far replica to accept", self._accepts, RECOVERY_SECONDS * 3),
        )
        self.report.at_most(f"{name}: far worker beats again after (s)", beats, RECOVERY_SECONDS)
        self.report.at_most(f"{name}: far replica accepts again after (s)", accepts, RECOVERY_SECONDS)

    async def _goes_on_without(self, name: str) -> None:
        """The others begin new executions meanwhile."""
        now = time.monotonic()
        calls = self.scene.recorder.all_calls

        async def begins() -> bool:
            return any(call.path == "first" and call.began > now for call in calls[-100:])

        took = await until(f"others to work ({name})", begins, TAKE_OVER_SECONDS * 3)
        self.report.figure(f"{name}: others begin the next after (s)", took)

    async def _is_silent(self) -> bool:
        return self.proxy.is_silent

    async def _far_side_holds_lock(self) -> bool:
        async with self.scene.database.transaction(read_only=True) as session:
            return bool(await session.scalar(HOLDS_LOCK, {"pids": list(self.proxy.server_processes)}))

    async def _held_by_far_worker(self) -> list[object]:
        held = sa.select(ExecutionRecord.id).where(*self._is_at_far_worker())
        async with self.scene.database.transaction(read_only=True) as session:
            return list(await session.scalars(held))

    async def _given_up(self, held: list[object]) -> bool:
        still = sa.select(sa.func.count()).where(ExecutionRecord.id.in_(held), *self._is_at_far_worker())
        async with self.scene.database.transaction(read_only=True) as session:
            return await session.scalar(still) == 0

    def _is_at_far_worker(self) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            ExecutionRecord.status == ExecutionStatus.RUNNING,
            ExecutionRecord.lease.is_not(None),
            ExecutionRecord.worker_id == self.far_worker,
        )

    async def _beats(self, moment: datetime) -> bool:
        return self.far_worker in await beating_since(self.scene.database, moment)

    async def _accepts(self) -> bool:
        return await self.scene.client.accepts(self.scene.installation.replicas[0], self.scene.flow)


async def network(place: Place, *, rounds: int, seconds: float, per_second: float, timing: Timing, seed: int) -> Report:
    chance = random.Random(seed)

    async def hold(call: Call) -> None:
        await asyncio.sleep(chance.uniform(0, 0.5))

    report = Report(f"network before PostgreSQL: slow, cut, silent; {rounds} rounds, seed {seed}")
    async with (
        Proxy(sa.make_url(place.database_url)).serving() as proxy,
        stage(place, timing, hold=hold, fails=every_tenth) as scene,
    ):
        network, near = await _arrange(scene, proxy, place, report)
        load = scene.load(per_second=per_second)
        await scene.until_accepted(10)
        for number in range(1, rounds + 1):
            await network.be_slow(seconds)
            await network.be_cut(seconds)
            await network.be_silent(f"silent, {number}", network.fall_silent)
            await network.be_silent(f"silent while claiming, {number}", network.fall_silent_while_claiming)
        await load.stop()
        await until_all_ended(scene.database, 120)
        await _works_alone(scene, near, report)
        await scene.judge(report)
    return report


async def _arrange(scene: Stage, proxy: Proxy, place: Place, report: Report) -> tuple[Network, Process]:
    """The first replica and the first worker stand behind the proxy."""
    installation = scene.installation
    through = proxy.url(place.database_url)
    installation.add_worker(database_url=through)
    moment = await database_time(scene.database)
    await installation.start()
    [far_worker] = await beating_since(scene.database, moment)
    installation.add_replica(run_worker=False, database_url=through)
    installation.add_replica(run_worker=False)
    near = installation.add_worker()
    await installation.start()
    await scene.start_flow()
    return Network(scene, proxy, report, far_worker), near


async def _works_alone(scene: Stage, near: Process, report: Report) -> None:
    """The worker that was cut off is one like any other again."""
    report.equal("exit status of the near worker", await near.end(signal.SIGTERM) or 0, 0)
    scene.installation.workers.remove(near)
    await scene.run(PROOF)
    took = await until_all_ended(scene.database, 60)
    report.figure(f"far worker then does {PROOF} executions alone in (s)", took)
