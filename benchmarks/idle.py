"""Measures the CPU usage of an idle installation."""

from __future__ import annotations

import asyncio

from benchmarks.cpu_time import difference
from benchmarks.installation import BenchmarkEnvironment
from benchmarks.results import Result
from benchmarks.sizes import Sizes


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Measure the CPU of a worker and of the database. On SQLite the process also serves the API."""
    async with environment.installation(kind) as installation, installation.workers() as processes:
        await installation.wait_for_workers(1)
        await asyncio.sleep(sizes.idle_settle_seconds)
        loop = asyncio.get_running_loop()
        postgres = await installation.postgres_cpu_seconds()
        started, worker = loop.time(), processes[0].cpu_seconds()
        await asyncio.sleep(sizes.idle_seconds)
        seconds = loop.time() - started
        worker = difference(worker, processes[0].cpu_seconds())
        postgres = difference(postgres, await installation.postgres_cpu_seconds())
    results = [Result("idle", kind, "idle worker", _format_share(worker, seconds), "<= 10 % of a core")]
    if postgres is not None:
        results.append(Result("idle", kind, "PostgreSQL with an idle worker", _format_share(postgres, seconds)))
    return results


def _format_share(cpu: float | None, seconds: float) -> str:
    return "?" if cpu is None else f"{cpu / seconds:.1%} of a core"
