"""PostgreSQL stopped hard, and started again after a while, under load."""

from __future__ import annotations

import asyncio
import random
import time

from tests.chaos.place import Place
from tests.chaos.processes import Timing
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.stage import Stage, every_tenth, stage
from tests.chaos.waiting import until

RECOVERY_SECONDS = 30


async def postgres(
    place: Place,
    *,
    stops: int,
    down: float,
    between: float,
    per_second: float,
    timing: Timing,
    seed: int,
    replicas: int = 2,
    workers: int = 2,
) -> Report:
    """It is away for `down` seconds, `stops` times, with `between` seconds in which all works."""
    assert place.server is not None
    chance = random.Random(seed)

    async def hold(call: Call) -> None:
        await asyncio.sleep(chance.uniform(0, 0.2))

    report = Report(f"PostgreSQL stopped hard {stops} times, for {down:g} s")
    async with stage(place, timing, hold=hold, fails=every_tenth) as scene:
        await scene.start(replicas, workers)
        load = scene.load(per_second=per_second)
        accepts: list[float] = []
        works: list[float] = []
        for _ in range(stops):
            await asyncio.sleep(between * chance.uniform(0.5, 1))
            await asyncio.to_thread(place.server.stop_hard)
            await asyncio.sleep(down)
            await asyncio.to_thread(place.server.start)
            again_at = time.monotonic()
            await asyncio.gather(_accepted(scene, again_at), _called(scene, again_at))
            accepts.append(scene.client.answers.first_after(again_at) - again_at)
            works.append(min(call.began for call in scene.recorder.all_calls if call.began > again_at) - again_at)
        await load.stop()
        report.at_most("longest until accepting again (s)", max(accepts), RECOVERY_SECONDS)
        report.at_most("longest until working again (s)", max(works), RECOVERY_SECONDS)
        await scene.judge(report)
    return report


async def _accepted(scene: Stage, moment: float) -> None:
    async def holds() -> bool:
        return scene.client.answers.times[-1] > moment

    await until("a request to be accepted", holds, 90)


async def _called(scene: Stage, moment: float) -> None:
    async def holds() -> bool:
        return scene.recorder.all_calls[-1].began > moment

    await until("a step to begin", holds, 90)
