"""Measures executions per second, with three trivial steps per execution."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.cpu_time import difference, format_seconds
from benchmarks.installation import POSTGRESQL, SQLITE, BenchmarkEnvironment
from benchmarks.results import Result
from benchmarks.sizes import Sizes
from benchmarks.timings import read_timings, steady_rate, total_seconds
from benchmarks.workload import accept_backlog, create_flows

TARGETS = {SQLITE: ">= 120/s", POSTGRESQL: ">= 200/s"}


class Run(NamedTuple):
    executions: int
    seconds: float
    """From the first claim to the last end."""
    steady_rate: float
    workers_cpu: list[float | None]
    """CPU seconds of each worker, including its startup."""
    postgres_cpu: float | None

    @property
    def rate(self) -> float:
        return self.executions / self.seconds

    def cpu(self) -> str:
        """Format the CPU usage for the table."""
        parts = [f"worker {format_seconds(used)}" for used in self.workers_cpu]
        if self.postgres_cpu is not None:
            parts.append(f"PostgreSQL {format_seconds(self.postgres_cpu)}")
        return ", ".join(parts)


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Measure one worker."""
    run = await run_backlog(environment, kind, sizes, workers=1)
    description = f"{run.executions} executions of three echo steps, {sizes.users} users, one worker"
    return [
        Result("throughput", kind, description, f"{run.rate:.0f}/s", TARGETS[kind]),
        Result("throughput", kind, "CPU time used", f"{run.cpu()} in {run.seconds:.1f} s"),
    ]


async def run_backlog(environment: BenchmarkEnvironment, kind: str, sizes: Sizes, *, workers: int) -> Run:
    """Queue executions without a worker, then start the workers and wait until all executions have ended."""
    async with environment.installation(kind) as installation:
        flows = await create_flows(installation, sizes.users)
        await accept_backlog(installation, flows, sizes.backlog)
        before = await installation.postgres_cpu_seconds()
        async with installation.workers(workers) as processes:
            await installation.wait_for_end(processes)
            used = [process.cpu_seconds() for process in processes]
            postgres = difference(before, await installation.postgres_cpu_seconds())
        timings = await read_timings(installation)
    return Run(len(timings), total_seconds(timings), steady_rate(timings), used, postgres)
