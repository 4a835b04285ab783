"""A worker that is frozen (SIGSTOP) past the heartbeat timeout, and continues after others recovered its executions."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.chaos.checks import wait_for_all_ends
from tests.chaos.processes import Timing
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.scenario import ScenarioRun, run_scenario
from tests.chaos.waiting import wait_until
from tests.chaos.workers import database_time, workers_alive_since
from tests.chaos.workspace import Workspace

RECOVERY_SECONDS = 30
FINAL_EXECUTIONS = 5


class Gate:
    """Holds the calls of every second step. First and repeated calls are released separately."""

    def __init__(self) -> None:
        self.first_calls = asyncio.Event()
        self.later_calls = asyncio.Event()
        self._seen: set[str] = set()

    async def hold(self, call: Call) -> None:
        if call.path != "second":
            return
        is_first = call.key not in self._seen
        self._seen.add(call.key)
        await (self.first_calls if is_first else self.later_calls).wait()


async def frozen(workspace: Workspace, *, executions: int, timing: Timing) -> Report:
    """On SQLite there is only one process, which continues its executions."""
    report = Report(f"a frozen process with {executions} executions, {workspace.backend}")
    gate = Gate()
    async with run_scenario(workspace, timing, hold=gate.hold) as run:
        await run.start(replicas=1, workers=1)
        await run.run(executions)
        await wait_until("all second steps to start", lambda: _called(run, executions, 1), 60)
        if run.installation.uses_sqlite:
            await _freeze_only_process(run, gate)
        else:
            await _freeze_one_worker(run, gate, report, executions)
        await run.check(report)
        repeated_twice = [calls for calls in run.recorder.repeated if len(calls) > 2]
        report.expect_none("steps repeated by the frozen worker", [calls[0].key for calls in repeated_twice])
    return report


async def _freeze_only_process(run: ScenarioRun, gate: Gate) -> None:
    [process] = run.installation.processes
    process.send(signal.SIGSTOP)
    await asyncio.sleep(run.installation.timing.heartbeat_timeout)
    gate.first_calls.set()
    gate.later_calls.set()
    process.send(signal.SIGCONT)


async def _freeze_one_worker(run: ScenarioRun, gate: Gate, report: Report, executions: int) -> None:
    [victim] = run.installation.workers
    other = run.installation.add_worker()
    await other.restart()
    victim.send(signal.SIGSTOP)
    frozen_at = time.monotonic()
    await wait_until("the other worker to recover the executions", lambda: _called(run, executions, 2), 60)
    repeats = [calls[1].started - frozen_at for calls in run.recorder.repeated]
    report.record("first recovery after (s)", min(repeats))
    report.expect_at_most("last recovery after (s)", max(repeats), RECOVERY_SECONDS)
    # The frozen worker receives its responses and tries to continue while the other worker still runs the steps.
    gate.first_calls.set()
    moment = await database_time(run.database)
    victim.send(signal.SIGCONT)

    async def both_send_heartbeats() -> bool:
        return len(await workers_alive_since(run.database, moment)) == 2

    report.record(
        "sends heartbeats again after (s)",
        await wait_until("a heartbeat of the frozen worker", both_send_heartbeats, 60),
    )
    gate.later_calls.set()
    await wait_for_all_ends(run.database, 60)
    report.expect_equal("exit status of the other worker", await other.end(signal.SIGTERM) or 0, 0)
    run.installation.workers.remove(other)
    await run.run(FINAL_EXECUTIONS)
    took = await wait_for_all_ends(run.database, 60)
    report.record(f"{FINAL_EXECUTIONS} executions on the frozen worker alone took (s)", took)


async def _called(run: ScenarioRun, executions: int, times: int) -> bool:
    calls = [calls for calls in run.recorder.calls.values() if calls[0].path == "second"]
    return len(calls) == executions and all(len(each) >= times for each in calls)
