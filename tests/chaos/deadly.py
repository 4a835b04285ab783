"""Executions that kill every worker that runs them, beside others that only need their time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from bloxserver.engine.run.runner import MAX_CRASHES
from tests.chaos.evidence import until_all_ended
from tests.chaos.hostile import install_plugin
from tests.chaos.place import Place
from tests.chaos.processes import Installation, Timing
from tests.chaos.report import Report
from tests.chaos.stage import stage

LOOK_SECONDS = 0.1


async def deadly(place: Place, *, executions: int, every: int, seconds: float, timing: Timing) -> Report:
    """Of so many executions one in `every` kills its worker; the others take so many seconds in their second step."""
    report = Report(f"1 execution in {every} kills its worker, {place.backend}, the others take {seconds:g} s")
    install_plugin(place.directory)
    runs = place.directory / "runs"
    environment = {"PYTHONPATH": str(place.directory), "CHAOS_RUNS": str(runs)}
    second = {"handler": "chaos.stubborn", "config": {"how": "kills", "seconds": seconds, "every": every}}

    def is_deadly(number: int) -> bool:
        return number % every == 0

    async with stage(place, timing, fails=is_deadly, second=second, environment=environment) as scene:
        await scene.start(replicas=1, workers=2)
        deaths: list[str] = []
        supervisor = asyncio.create_task(_start_again(scene.installation, deaths))
        load = scene.load(per_second=50, count=executions)
        await load.finish(60 + executions)
        killers = sum(map(is_deadly, load.answers.acknowledged.values()))
        patience = 60 + killers * MAX_CRASHES * (timing.dead_after * 2 + seconds)
        report.figure("all had ended after (s)", await until_all_ended(scene.database, patience))
        supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await supervisor
        report.figure("workers killed", len(deaths))
        await scene.judge(report)
        begun = runs.read_text().splitlines()
        report.figure("most runs of one step", max(begun.count(key) for key in set(begun)))
    return report


async def _start_again(installation: Installation, deaths: list[str]) -> None:
    """As whatever runs the processes of an installation does."""
    while True:
        for process in installation.processes:
            if not process.is_running:
                deaths.append(process.name)
                process.start()
        await asyncio.sleep(LOOK_SECONDS)
