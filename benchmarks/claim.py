"""What it costs to take work from a queue, with and without a long backlog in it."""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import uuid4

from benchmarks.figures import Figure, spread
from benchmarks.installation import Installation, Laboratory
from benchmarks.sizes import Sizes
from benchmarks.workload import accept_backlog, create_flows
from bloxserver.clock import now
from bloxserver.engine.queue.claims import claim_executions
from bloxserver.engine.run.claimer import concurrency_by_tier
from bloxserver.settings import Settings

FEW = 100


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """One claim of a worker whose places are all free, with one more backlog each time."""
    async with laboratory.installation(kind) as installation:
        flows = await create_flows(installation, sizes.users)
        await accept_backlog(installation, flows, FEW)
        figures = [await _figure(installation, f"a claim, {FEW} executions of {sizes.users} users wait", sizes)]
        await accept_backlog(installation, flows[:1], sizes.queued)
        figures.append(await _figure(installation, f"and {sizes.queued} more of one user", sizes))
        await accept_backlog(installation, flows[:1], sizes.queued, resume_at=now() + timedelta(days=1))
        figures.append(await _figure(installation, f"and {sizes.queued} that are suspended until tomorrow", sizes))
        many = await create_flows(installation, sizes.many_users)
        await accept_backlog(installation, many, sizes.queued)
        more = f"and {sizes.queued} more of {sizes.many_users} users"
        figures.append(await _figure(installation, more, sizes))
    return figures


async def _figure(installation: Installation, what: str, sizes: Sizes) -> Figure:
    milliseconds, taken = await _claims(installation, sizes.claims)
    return Figure("claim", installation.kind, f"{what}: {taken} taken", spread(milliseconds))


async def _claims(installation: Installation, number: int) -> tuple[list[float], int]:
    """Milliseconds of each claim, and how many executions one takes. Each is undone: all find the same."""
    settings = Settings()
    slots_per_user = concurrency_by_tier(settings)
    places = dict.fromkeys(slots_per_user, settings.worker_concurrency)
    seconds: list[float] = []
    taken = 0
    for _ in range(number):
        async with installation.database.sessions() as session:
            began = time.perf_counter()
            taken = len(await claim_executions(session, "benchmark", uuid4(), places, slots_per_user))
            seconds.append((time.perf_counter() - began) * 1000)
            await session.rollback()
    return seconds, taken
