"""Executions that kill every worker that runs them, or block it until it is killed, together with healthy ones."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from bloxserver.engine.run.runner import MAX_CRASHES
from tests.chaos.checks import wait_for_all_ends
from tests.chaos.hostile import install_plugin
from tests.chaos.processes import Installation, Timing
from tests.chaos.report import Report
from tests.chaos.scenario import run_scenario
from tests.chaos.workspace import Workspace

EVENT_LOOP_TIMEOUT = 4
RESTART_SECONDS = 5
POLL_SECONDS = 0.1


async def deadly(
    workspace: Workspace, *, how: str, executions: int, every: int, seconds: float, timing: Timing
) -> Report:
    """One in `every` executions ends its worker: it `kills` it, or it `sleeps` or `holds` the interpreter lock forever.

    The second step of the others takes `seconds`.
    """
    report = Report(f"1 in {every} executions {how} its worker, {workspace.backend}, the others take {seconds:g} s")
    install_plugin(workspace.directory)
    runs = workspace.directory / "runs"
    environment = {
        "PYTHONPATH": str(workspace.directory),
        "CHAOS_RUNS": str(runs),
        "EVENT_LOOP_TIMEOUT": str(EVENT_LOOP_TIMEOUT),
    }
    second = {"handler": "chaos.stubborn", "config": {"how": how, "every": every, "harmless_seconds": seconds}}

    def is_deadly(number: int) -> bool:
        return number % every == 0

    async with run_scenario(workspace, timing, fails=is_deadly, second=second, environment=environment) as run:
        await run.start(replicas=1, workers=2)
        deaths: list[str] = []
        supervisor = asyncio.create_task(_supervise(run.installation, deaths))
        load = run.load(per_second=50, count=executions)
        await load.finish(60 + executions)
        killers = sum(map(is_deadly, load.responses.acknowledged.values()))
        per_crash = timing.heartbeat_timeout * 2 + EVENT_LOOP_TIMEOUT + RESTART_SECONDS + seconds
        timeout_seconds = 60 + killers * MAX_CRASHES * per_crash
        report.record("all executions ended after (s)", await wait_for_all_ends(run.database, timeout_seconds))
        supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await supervisor
        report.record("workers killed", len(deaths))
        await run.check(report)
        attempts = runs.read_text().splitlines()
        report.record("maximum attempts of a step", max(attempts.count(key) for key in set(attempts)))
    return report


async def _supervise(installation: Installation, deaths: list[str]) -> None:
    """Restart processes that exited, as a process supervisor does."""
    while True:
        for process in installation.processes:
            if not process.is_running:
                deaths.append(process.name)
                process.start()
        await asyncio.sleep(POLL_SECONDS)
