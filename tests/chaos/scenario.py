"""The common parts of scenarios: recorder, database, processes, client and flow, and the final checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bloxserver.models.database import Database
from tests.chaos.checks import check_invariants, longest_interruption, read_observations, wait_for_all_ends
from tests.chaos.load import Client, Flow, Load, start_flow
from tests.chaos.processes import Installation, Timing
from tests.chaos.recorder import Hold, Recorder, chain, respond_immediately
from tests.chaos.report import Report
from tests.chaos.waiting import wait_until
from tests.chaos.workspace import Workspace

END_SECONDS = 90


def never_fails(number: int) -> bool:
    return False


def every_tenth(number: int) -> bool:
    return number % 10 == 0


@dataclass
class ScenarioRun:
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
        """Start the processes and a flow. On SQLite there is one process."""
        await self.installation.start_default(replicas, workers)
        await self.start_flow()

    async def start_flow(self) -> None:
        self._flow = await start_flow(self.client, self.database, self.organism)

    def load(self, *, per_second: float, count: int | None = None) -> Load:
        """Start sending runs."""
        load = Load(self.client, self.flow, per_second=per_second, count=count)
        load.start()
        self._loads.append(load)
        return load

    async def close(self) -> None:
        for load in self._loads:
            await load.abandon()
        await self.client.aclose()

    async def run(self, count: int) -> None:
        """Send this many runs at once; all must be accepted."""
        ids = await asyncio.gather(
            *(self.client.run(self.flow, number, by_webhook=number % 2 == 0) for number in range(1, count + 1))
        )
        assert all(ids), self.client.responses

    async def wait_until_accepted(self, more: int) -> None:
        """Wait until this many more runs of the load are accepted."""
        responses = self.client.responses
        expected = len(responses.acknowledged) + more

        async def accepted() -> bool:
            return len(responses.acknowledged) >= expected

        await wait_until(f"{more} more executions to be accepted", accepted, 120)

    async def check(self, report: Report) -> None:
        """Wait until all executions have ended, and check the results."""
        installation, responses = self.installation, self.client.responses
        remaining = await wait_for_all_ends(self.database, END_SECONDS + 3 * installation.timing.heartbeat_timeout)
        check_invariants(report, await read_observations(self.database), responses, self.recorder)
        report.record("longest interruption of a step (s)", longest_interruption(self.recorder))
        report.record("last end after the last request (s)", remaining)
        report.record("refused connections", responses.refused)
        report.record("requests without a response", len(responses.unanswered))
        report.record("requests with status 503", responses.unavailable)
        report.expect_none("requests with an unexpected status", responses.failed)
        report.record("longest request (s)", responses.longest)
        exited = [each for each in installation.processes if each.unexpected_exits or not each.is_running]
        report.expect_none(
            "processes that exited unexpectedly", [f"{each.name}: {each.read_log_end()}" for each in exited]
        )


@asynccontextmanager
async def run_scenario(
    workspace: Workspace,
    timing: Timing,
    *,
    hold: Hold = respond_immediately,
    fails: Callable[[int], bool] = never_fails,
    second: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[ScenarioRun]:
    """Set up everything but the processes, which the caller starts. `second` changes the second listener."""
    async with (
        Recorder(hold, fails).serving() as recorder,
        workspace.database() as database,
        Installation(workspace.database_url, workspace.directory, timing, environment) as installation,
    ):
        run = ScenarioRun(recorder, database, installation, Client(installation.replicas), chain(recorder.url, second))
        try:
            yield run
        finally:
            await run.close()
