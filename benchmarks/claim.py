"""What it costs to take work from a queue, with and without a long backlog in it."""

from __future__ import annotations

import time
from uuid import uuid4

from benchmarks.figures import Figure, spread
from benchmarks.installation import Installation, Laboratory
from benchmarks.sizes import Sizes
from benchmarks.workload import accept_backlog, create_flows
from bloxserver.engine.claimer import concurrency_by_tier
from bloxserver.services.claims import claim_executions
from bloxserver.settings import Settings

FEW = 100


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """One claim of a worker whose places are all free."""
    async with laboratory.installation(kind) as installation:
        flows = await create_flows(installation, sizes.users)
        await accept_backlog(installation, flows, FEW)
        few, taken_of_few = await _claims(installation, sizes.claims)
        await accept_backlog(installation, flows[:1], sizes.queued)
        many, taken_of_many = await _claims(installation, sizes.claims)
    return [
        Figure("claim", kind, f"a claim with {FEW} executions waiting, {taken_of_few} taken", spread(few)),
        Figure("claim", kind, f"with {sizes.queued} more of one user, {taken_of_many} taken", spread(many)),
    ]


async def _claims(installation: Installation, number: int) -> tuple[list[float], int]:
    """Milliseconds of each claim, and how many executions one takes. Each is undone: all find the same."""
    settings = Settings()
    places_of_user = concurrency_by_tier(settings)
    places = dict.fromkeys(places_of_user, settings.worker_concurrency)
    seconds: list[float] = []
    taken = 0
    for _ in range(number):
        async with installation.database.sessions() as session:
            began = time.perf_counter()
            taken = len(await claim_executions(session, "benchmark", uuid4(), places, places_of_user))
            seconds.append((time.perf_counter() - began) * 1000)
            await session.rollback()
    return seconds, taken
