"""kill -9 of API and workers at random, in the middle of accepting and of steps."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.chaos.evidence import longest_pause
from tests.chaos.load import Load
from tests.chaos.place import Place
from tests.chaos.processes import Installation, Process, Replica, Timing
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.stage import every_tenth, stage
from tests.chaos.waiting import until

PATIENCE_SECONDS = 120
MAX_MOMENT = 0.2


@dataclass
class Killer:
    """Kills what is ready, replicas in mid-accept and workers at any time, and starts them again."""

    installation: Installation
    chance: random.Random
    every: int
    """Executions that are accepted between two kills, on average."""
    kills: list[float] = field(default_factory=list)
    in_mid_accept: int = 0
    _restarts: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self, load: Load) -> None:
        """Until the load is over."""
        kinds: list[Sequence[Process]] = [self.installation.replicas]
        if self.installation.workers:
            kinds.append(self.installation.workers)
        while True:
            due = len(load.answers.acknowledged) + self.chance.randint(1, 2 * self.every)
            await until("executions to be accepted", partial(_has_accepted, load, due), PATIENCE_SECONDS)
            if load.is_over():
                break
            await asyncio.sleep(self.chance.uniform(0, MAX_MOMENT))
            victims = [each for each in kinds[len(self.kills) % len(kinds)] if each.is_ready]
            if victims:
                await self._kill(self.chance.choice(victims), load)
        await asyncio.gather(*self._restarts)

    async def _kill(self, victim: Process, load: Load) -> None:
        if isinstance(victim, Replica):
            await until("a request to be under way", lambda: _is_asked(victim, load), PATIENCE_SECONDS)
            await asyncio.sleep(self.chance.uniform(0, 0.01))  # anywhere in the request
            self.in_mid_accept += victim.under_way > 0
        self.kills.append(time.monotonic())
        await victim.kill()
        self._restarts.append(asyncio.create_task(victim.restart()))

    async def close(self) -> None:
        """For a scenario that has failed."""
        for restart in self._restarts:
            restart.cancel()
        await asyncio.gather(*self._restarts, return_exceptions=True)


async def _has_accepted(load: Load, count: int) -> bool:
    return load.is_over() or len(load.answers.acknowledged) >= count


async def _is_asked(replica: Replica, load: Load) -> bool:
    return load.is_over() or replica.under_way > 0


async def kill(
    place: Place,
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
        await asyncio.sleep(chance.uniform(0, 0.2))  # a server outside takes its time

    report = Report(f"kill -9 of processes at random, {place.backend}, seed {seed}")
    async with stage(place, timing, hold=hold, fails=every_tenth) as scene:
        await scene.start(replicas, workers)
        load = scene.load(per_second=per_second, count=executions)
        killer = Killer(scene.installation, chance, every)
        try:
            await killer.run(load)
            await load.finish(PATIENCE_SECONDS)
        finally:
            await killer.close()
        report.at_least("kills", len(killer.kills), 1)
        report.figure("of these in mid-accept", killer.in_mid_accept)
        await scene.judge(report)
        report.figure("longest from a kill to the next progress (s)", longest_pause(scene.recorder, killer.kills))
    return report
