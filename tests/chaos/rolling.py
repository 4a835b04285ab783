"""A rolling restart: the processes are stopped and started one after another under constant load."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.chaos.processes import Timing
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.scenario import every_tenth, run_scenario
from tests.chaos.workspace import Workspace

SHORT_STEP_SECONDS = 0.05
MARGIN_SECONDS = 2


async def rolling(
    workspace: Workspace, *, rounds: int, per_second: float, timing: Timing, replicas: int = 2, workers: int = 2
) -> Report:
    async def hold(call: Call) -> None:
        # Some steps take longer than the shutdown grace period, and continue on another worker.
        is_long = call.path == "second" and call.number % 10 == 3
        await asyncio.sleep(timing.shutdown_grace * 1.5 if is_long else SHORT_STEP_SECONDS)

    report = Report(f"rolling restart, {workspace.backend}, {per_second:g} requests per second")
    async with run_scenario(workspace, timing, hold=hold, fails=every_tenth) as run:
        await run.start(replicas, workers)
        load = run.load(per_second=per_second)
        statuses: list[int | None] = []
        took: list[float] = []
        for process in run.installation.processes * rounds:
            await run.wait_until_accepted(int(per_second))
            signalled_at = time.monotonic()
            statuses.append(await process.end(signal.SIGTERM))
            took.append(time.monotonic() - signalled_at)
            await process.restart()
        await run.wait_until_accepted(int(per_second))
        await load.stop()
        report.record("processes replaced", len(statuses))
        report.expect_none("exit statuses other than 0", [status for status in statuses if status != 0])
        report.expect_at_most(
            "longest time from SIGTERM to the exit (s)", max(took), timing.shutdown_grace + MARGIN_SECONDS + 15
        )
        await run.check(report)
        report.expect_none("requests without a response", load.responses.unanswered)
        report.expect_equal("requests with status 503", load.responses.unavailable, 0)
    return report
