"""A rolling restart: each process in turn is told to end, and started again when it has, under constant load."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.chaos.place import Place
from tests.chaos.processes import Timing
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.stage import every_tenth, stage

SHORT_STEP_SECONDS = 0.05
MARGIN_SECONDS = 2


async def rolling(
    place: Place, *, rounds: int, per_second: float, timing: Timing, replicas: int = 2, workers: int = 2
) -> Report:
    async def hold(call: Call) -> None:
        # some steps do not end while their worker drains, and are handed over in the middle
        is_long = call.path == "second" and call.number % 10 == 3
        await asyncio.sleep(timing.drain * 1.5 if is_long else SHORT_STEP_SECONDS)

    report = Report(f"rolling restart, {place.backend}, {per_second:g} requests per second")
    async with stage(place, timing, hold=hold, fails=every_tenth) as scene:
        await scene.start(replicas, workers)
        load = scene.load(per_second=per_second)
        statuses: list[int | None] = []
        took: list[float] = []
        for process in scene.installation.processes * rounds:
            await scene.until_accepted(int(per_second))
            told_at = time.monotonic()
            statuses.append(await process.end(signal.SIGTERM))
            took.append(time.monotonic() - told_at)
            await process.restart()
        await scene.until_accepted(int(per_second))
        await load.stop()
        report.figure("processes replaced", len(statuses))
        report.none("exit statuses other than 0", [status for status in statuses if status != 0])
        report.at_most("longest from SIGTERM to the end (s)", max(took), timing.drain + MARGIN_SECONDS + 15)
        await scene.judge(report)
        report.none("requests that broke", load.answers.unanswered)
        report.equal("requests that were unavailable", load.answers.unavailable, 0)
    return report
