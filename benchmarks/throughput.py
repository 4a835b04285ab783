"""How many executions of three trivial steps a backlog loses per second."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.figures import Figure
from benchmarks.installation import POSTGRESQL, SQLITE, Laboratory
from benchmarks.processor_time import between, shown
from benchmarks.sizes import Sizes
from benchmarks.timings import read_timings, seconds_of_all, steady_rate
from benchmarks.workload import accept_backlog, create_flows

TARGETS = {SQLITE: ">= 120/s", POSTGRESQL: ">= 200/s"}


class Run(NamedTuple):
    executions: int
    seconds: float
    """From the first pick-up to the last end."""
    steady_rate: float
    workers_cpu: list[float | None]
    """Seconds that each worker used, its start included."""
    postgres_cpu: float | None

    @property
    def rate(self) -> float:
        return self.executions / self.seconds

    def cpu(self) -> str:
        """What was used, for the table."""
        parts = [f"worker {shown(used)}" for used in self.workers_cpu]
        if self.postgres_cpu is not None:
            parts.append(f"PostgreSQL {shown(self.postgres_cpu)}")
        return ", ".join(parts)


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """One worker."""
    run = await empty_backlog(laboratory, kind, sizes, workers=1)
    what = f"{run.executions} executions of three echo steps, {sizes.users} users, one worker"
    return [
        Figure("throughput", kind, what, f"{run.rate:.0f}/s", TARGETS[kind]),
        Figure("throughput", kind, "CPU used for it, of two cores or more", f"{run.cpu()} in {run.seconds:.1f} s"),
    ]


async def empty_backlog(laboratory: Laboratory, kind: str, sizes: Sizes, *, workers: int) -> Run:
    """Accept a backlog while nobody works, then start the workers and wait until it is gone."""
    async with laboratory.installation(kind) as installation:
        flows = await create_flows(installation, sizes.users)
        await accept_backlog(installation, flows, sizes.backlog)
        before = await installation.postgres_cpu_seconds()
        async with installation.workers(workers) as processes:
            await installation.until_ended(processes)
            used = [process.cpu_seconds() for process in processes]
            postgres = between(before, await installation.postgres_cpu_seconds())
        timings = await read_timings(installation)
    return Run(len(timings), seconds_of_all(timings), steady_rate(timings), used, postgres)
