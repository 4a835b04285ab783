"""PostgreSQL that stops without a checkpoint and starts again, under load."""

from __future__ import annotations

import asyncio
import random
import time

from tests.chaos.processes import Timing
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.scenario import ScenarioRun, every_tenth, run_scenario
from tests.chaos.waiting import wait_until
from tests.chaos.workspace import Workspace

RECOVERY_SECONDS = 30


async def postgres(
    workspace: Workspace,
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
    """Stop the server `stops` times for `down` seconds, with about `between` seconds of normal operation in between."""
    assert workspace.server is not None
    chance = random.Random(seed)

    async def hold(call: Call) -> None:
        await asyncio.sleep(chance.uniform(0, 0.2))

    report = Report(f"PostgreSQL stopped {stops} times for {down:g} s")
    async with run_scenario(workspace, timing, hold=hold, fails=every_tenth) as run:
        await run.start(replicas, workers)
        load = run.load(per_second=per_second)
        accepts: list[float] = []
        works: list[float] = []
        for _ in range(stops):
            await asyncio.sleep(between * chance.uniform(0.5, 1))
            await asyncio.to_thread(workspace.server.stop_immediately)
            await asyncio.sleep(down)
            await asyncio.to_thread(workspace.server.start)
            started_at = time.monotonic()
            await asyncio.gather(_wait_for_acceptance(run, started_at), _wait_for_step(run, started_at))
            accepts.append(run.client.responses.first_after(started_at) - started_at)
            works.append(min(call.started for call in run.recorder.all_calls if call.started > started_at) - started_at)
        await load.stop()
        report.expect_at_most("longest time until a run was accepted (s)", max(accepts), RECOVERY_SECONDS)
        report.expect_at_most("longest time until a step started (s)", max(works), RECOVERY_SECONDS)
        await run.check(report)
    return report


async def _wait_for_acceptance(run: ScenarioRun, moment: float) -> None:
    async def holds() -> bool:
        return run.client.responses.times[-1] > moment

    await wait_until("a request to be accepted", holds, 90)


async def _wait_for_step(run: ScenarioRun, moment: float) -> None:
    async def holds() -> bool:
        return run.recorder.all_calls[-1].started > moment

    await wait_until("a step to start", holds, 90)
