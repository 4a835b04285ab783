"""What an installation without work costs."""

from __future__ import annotations

import asyncio

from benchmarks.figures import Figure
from benchmarks.installation import Laboratory
from benchmarks.processor_time import between
from benchmarks.sizes import Sizes


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """The CPU of a worker, and of the database beside it; on SQLite the process serves the API as well."""
    async with laboratory.installation(kind) as installation, installation.workers() as processes:
        await installation.until_workers(1)
        await asyncio.sleep(sizes.idle_settle_seconds)
        loop = asyncio.get_running_loop()
        postgres = await installation.postgres_cpu_seconds()
        began, worker = loop.time(), processes[0].cpu_seconds()
        await asyncio.sleep(sizes.idle_seconds)
        seconds = loop.time() - began
        worker = between(worker, processes[0].cpu_seconds())
        postgres = between(postgres, await installation.postgres_cpu_seconds())
    figures = [Figure("idle", kind, "worker without work", _share(worker, seconds), "<= 10 % of a core")]
    if postgres is not None:
        figures.append(Figure("idle", kind, "PostgreSQL beside it", _share(postgres, seconds)))
    return figures


def _share(cpu: float | None, seconds: float) -> str:
    return "?" if cpu is None else f"{cpu / seconds:.1%} of a core"
