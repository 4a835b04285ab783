"""Measures the duration of a claim, with a short and with a long queue."""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import uuid4

from benchmarks.installation import BenchmarkEnvironment, Installation
from benchmarks.results import Result, summarize
from benchmarks.sizes import Sizes
from benchmarks.workload import accept_backlog, create_flows
from bloxserver.clock import now
from bloxserver.engine.queue.claims import claim_executions
from bloxserver.engine.run.claimer import concurrency_by_tier
from bloxserver.settings import Settings

SHORT_QUEUE = 100


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Measure a claim of an idle worker, each time with more executions in the queue."""
    async with environment.installation(kind) as installation:
        flows = await create_flows(installation, sizes.users)
        await accept_backlog(installation, flows, SHORT_QUEUE)
        results = [await _result(installation, f"queue of {SHORT_QUEUE}, {sizes.users} users", sizes)]
        await accept_backlog(installation, flows[:1], sizes.queued)
        results.append(await _result(installation, f"plus {sizes.queued} of one user", sizes))
        await accept_backlog(installation, flows[:1], sizes.queued, resume_at=now() + timedelta(days=1))
        results.append(await _result(installation, f"plus {sizes.queued} suspended until tomorrow", sizes))
        many = await create_flows(installation, sizes.many_users)
        await accept_backlog(installation, many, sizes.queued)
        description = f"plus {sizes.queued} of {sizes.many_users} users"
        results.append(await _result(installation, description, sizes))
    return results


async def _result(installation: Installation, description: str, sizes: Sizes) -> Result:
    milliseconds, claimed = await _claims(installation, sizes.claims)
    return Result("claim", installation.kind, f"{description}: {claimed} claimed", summarize(milliseconds))


async def _claims(installation: Installation, number: int) -> tuple[list[float], int]:
    """Return the milliseconds of each claim, and the executions per claim. Claims are rolled back, so all are equal."""
    settings = Settings()
    slots_per_user = concurrency_by_tier(settings)
    slots = dict.fromkeys(slots_per_user, settings.worker_concurrency)
    milliseconds: list[float] = []
    claimed = 0
    for _ in range(number):
        async with installation.database.sessions() as session:
            started = time.perf_counter()
            claimed = len(await claim_executions(session, "benchmark", uuid4(), slots, slots_per_user))
            milliseconds.append((time.perf_counter() - started) * 1000)
            await session.rollback()
    return milliseconds, claimed
