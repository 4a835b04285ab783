"""A worker that is stopped (SIGSTOP) for longer than it may be silent, and comes back when others have its work."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.chaos.evidence import until_all_ended
from tests.chaos.place import Place
from tests.chaos.processes import Timing
from tests.chaos.recorder import Call
from tests.chaos.report import Report
from tests.chaos.stage import Stage, stage
from tests.chaos.waiting import until
from tests.chaos.workers import beating_since, database_time

TAKE_OVER_SECONDS = 30
PROOF = 5


class Gate:
    """Holds the second step of every execution: what was called before a moment is let go apart from the rest."""

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


async def frozen(place: Place, *, executions: int, timing: Timing) -> Report:
    """On SQLite there is nobody to take over: there the one process just goes on."""
    report = Report(f"a frozen process, {place.backend}, {executions} executions in its hands")
    gate = Gate()
    async with stage(place, timing, hold=gate.hold) as scene:
        await scene.start(replicas=1, workers=1)
        await scene.run(executions)
        await until("all second steps to be under way", lambda: _called(scene, executions, 1), 60)
        if scene.installation.uses_sqlite:
            await _freeze_the_only_one(scene, gate)
        else:
            await _freeze_one_of_two(scene, gate, report, executions)
        await scene.judge(report)
        thrice = [calls for calls in scene.recorder.repeated if len(calls) > 2]
        report.none("steps repeated by the frozen one", [calls[0].key for calls in thrice])
    return report


async def _freeze_the_only_one(scene: Stage, gate: Gate) -> None:
    [process] = scene.installation.processes
    process.send(signal.SIGSTOP)
    await asyncio.sleep(scene.installation.timing.dead_after)
    gate.first_calls.set()
    gate.later_calls.set()
    process.send(signal.SIGCONT)


async def _freeze_one_of_two(scene: Stage, gate: Gate, report: Report, executions: int) -> None:
    [victim] = scene.installation.workers
    other = scene.installation.add_worker()
    await other.restart()
    victim.send(signal.SIGSTOP)
    frozen_at = time.monotonic()
    await until("the other worker to take over", lambda: _called(scene, executions, 2), 60)
    repeats = [calls[1].began - frozen_at for calls in scene.recorder.repeated]
    report.figure("first take-over after (s)", min(repeats))
    report.at_most("last take-over after (s)", max(repeats), TAKE_OVER_SECONDS)
    # The frozen one finds its answers, and tries to go on with them, while the other is still at work.
    gate.first_calls.set()
    moment = await database_time(scene.database)
    victim.send(signal.SIGCONT)

    async def both_beat() -> bool:
        return len(await beating_since(scene.database, moment)) == 2

    report.figure("beats again after (s)", await until("the frozen worker to beat", both_beat, 60))
    gate.later_calls.set()
    await until_all_ended(scene.database, 60)
    report.equal("exit status of the other", await other.end(signal.SIGTERM) or 0, 0)
    scene.installation.workers.remove(other)
    await scene.run(PROOF)
    took = await until_all_ended(scene.database, 60)
    report.figure(f"then does {PROOF} executions alone in (s)", took)


async def _called(scene: Stage, executions: int, times: int) -> bool:
    calls = [calls for calls in scene.recorder.calls.values() if calls[0].path == "second"]
    return len(calls) == executions and all(len(each) >= times for each in calls)
