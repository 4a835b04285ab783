"""kill -9 of random API processes and workers, during requests and steps."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.chaos.checks import longest_pause
from tests.chaos.load import Load
from tests.chaos.processes import Installation, Process, Replica, Timing
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.scenario import every_tenth, run_scenario
from tests.chaos.waiting import wait_until
from tests.chaos.workspace import Workspace

WAIT_SECONDS = 120
MAX_DELAY_SECONDS = 0.2


@dataclass
class Killer:
    """Kills processes that are ready, replicas during a request and workers at any time, and restarts them."""

    installation: Installation
    chance: random.Random
    every: int
    """Average number of accepted executions between two kills."""
    kills: list[float] = field(default_factory=list)
    during_request: int = 0
    _restarts: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self, load: Load) -> None:
        """Kill processes until the load ends."""
        kinds: list[Sequence[Process]] = [self.installation.replicas]
        if self.installation.workers:
            kinds.append(self.installation.workers)
        while True:
            due = len(load.responses.acknowledged) + self.chance.randint(1, 2 * self.every)
            await wait_until("executions to be accepted", partial(_has_accepted, load, due), WAIT_SECONDS)
            if load.is_over():
                break
            await asyncio.sleep(self.chance.uniform(0, MAX_DELAY_SECONDS))
            victims = [each for each in kinds[len(self.kills) % len(kinds)] if each.is_ready]
            if victims:
                await self._kill(self.chance.choice(victims), load)
        await asyncio.gather(*self._restarts)

    async def _kill(self, victim: Process, load: Load) -> None:
        if isinstance(victim, Replica):
            await wait_until("a request in progress", lambda: _has_open_request(victim, load), WAIT_SECONDS)
            await asyncio.sleep(self.chance.uniform(0, 0.01))  # at any point of the request
            self.during_request += victim.open_requests > 0
        self.kills.append(time.monotonic())
        await victim.kill()
        self._restarts.append(asyncio.create_task(victim.restart()))

    async def close(self) -> None:
        """Cancel pending restarts after a failure."""
        for restart in self._restarts:
            restart.cancel()
        await asyncio.gather(*self._restarts, return_exceptions=True)


async def _has_accepted(load: Load, count: int) -> bool:
    return load.is_over() or len(load.responses.acknowledged) >= count


async def _has_open_request(replica: Replica, load: Load) -> bool:
    return load.is_over() or replica.open_requests > 0


async def kill(
    workspace: Workspace,
    *,
    executions: int,
    every: int,
    per_second: float,
    timing: Timing,
    seed: int,
    replicas: int = 2,
    workers: int = 2,
) -> Report:
    chance = random.Random(seed)

    async def hold(call: Call) -> None:
        await asyncio.sleep(chance.uniform(0, 0.2))  # the response time of an external server

    report = Report(f"kill -9 of random processes, {workspace.backend}, seed {seed}")
    async with run_scenario(workspace, timing, hold=hold, fails=every_tenth) as run:
        await run.start(replicas, workers)
        load = run.load(per_second=per_second, count=executions)
        killer = Killer(run.installation, chance, every)
        try:
            await killer.run(load)
            await load.finish(WAIT_SECONDS)
        finally:
            await killer.close()
        report.expect_at_least("kills", len(killer.kills), 1)
        report.record("kills during a request", killer.during_request)
        await run.check(report)
        report.record("longest time from a kill to the next response (s)", longest_pause(run.recorder, killer.kills))
    return report
