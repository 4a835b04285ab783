"""What every scenario stands on: recorder, database, processes, a client, a flow; and the judgement at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bloxserver.models.database import Database
from tests.chaos.evidence import judge, longest_interruption, read_evidence, until_all_ended
from tests.chaos.load import Client, Flow, Load, start_flow
from tests.chaos.place import Place
from tests.chaos.processes import Installation, Timing
from tests.chaos.recorder import Hold, Recorder, answer_at_once, chain
from tests.chaos.report import Report
from tests.chaos.waiting import until

END_SECONDS = 90


def no_number(number: int) -> bool:
    return False


def every_tenth(number: int) -> bool:
    return number % 10 == 0


@dataclass
class Stage:
    recorder: Recorder
    database: Database
    installation: Installation
    client: Client
    organism: str
    _flow: Flow | None = None
    _loads: list[Load] = field(default_factory=list)

    @property
    def flow(self) -> Flow:
        assert self._flow is not None
        return self._flow

    async def start(self, replicas: int, workers: int) -> None:
        """Start the usual processes, so many on PostgreSQL, and a flow."""
        await self.installation.start_usual(replicas, workers)
        await self.start_flow()

    async def start_flow(self) -> None:
        self._flow = await start_flow(self.client, self.database, self.organism)

    def load(self, *, per_second: float, count: int | None = None) -> Load:
        """Sending already."""
        load = Load(self.client, self.flow, per_second=per_second, count=count)
        load.start()
        self._loads.append(load)
        return load

    async def close(self) -> None:
        for load in self._loads:
            await load.abandon()
        await self.client.aclose()

    async def run(self, count: int) -> None:
        """Have so many executions accepted, at once."""
        ids = await asyncio.gather(
            *(self.client.run(self.flow, number, by_webhook=number % 2 == 0) for number in range(1, count + 1))
        )
        assert all(ids), self.client.answers

    async def until_accepted(self, more: int) -> None:
        """Wait until the load has had so many more executions accepted."""
        answers = self.client.answers
        wanted = len(answers.acknowledged) + more

        async def accepted() -> bool:
            return len(answers.acknowledged) >= wanted

        await until(f"{more} more executions to be accepted", accepted, 120)

    async def judge(self, report: Report) -> None:
        """Wait until everything has ended, and hold what is there against what was told."""
        installation, answers = self.installation, self.client.answers
        rest = await until_all_ended(self.database, END_SECONDS + 3 * installation.timing.dead_after)
        judge(report, await read_evidence(self.database), answers, self.recorder)
        report.figure("longest interruption of a step (s)", longest_interruption(self.recorder))
        report.figure("last end after the last request (s)", rest)
        report.figure("requests refused, sent elsewhere", answers.refused)
        report.figure("requests unanswered", len(answers.unanswered))
        report.figure("requests answered with 503", answers.unavailable)
        report.none("requests answered wrongly", answers.failed)
        report.figure("longest request (s)", answers.longest)
        died = [each for each in installation.processes if each.ended_unasked or not each.is_running]
        report.none("processes that ended by themselves", [f"{each.name}: {each.last_words()}" for each in died])


@asynccontextmanager
async def stage(
    place: Place,
    timing: Timing,
    *,
    hold: Hold = answer_at_once,
    fails: Callable[[int], bool] = no_number,
    second: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Stage]:
    """Everything but the processes, which the scenario adds and starts. `second` is what its step does instead."""
    async with (
        Recorder(hold, fails).serving() as recorder,
        place.database() as database,
        Installation(place.database_url, place.directory, timing, environment) as installation,
    ):
        scene = Stage(recorder, database, installation, Client(installation.replicas), chain(recorder.url, second))
        try:
            yield scene
        finally:
            await scene.close()
