"""Measures the wait of other users while one user has a long queue."""

from __future__ import annotations

import asyncio

from benchmarks.installation import BenchmarkEnvironment
from benchmarks.results import Result, summarize
from benchmarks.sizes import Sizes
from benchmarks.timings import claim_latencies_ms, read_timings
from benchmarks.workload import accept_backlog, create_flows
from bloxserver.models.enums import Tier

WARM_UP_SECONDS = 3
"""Time for which the worker runs the long queue before the other users send webhooks."""


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """All users have the same tier. One user has a long queue; then every other user sends one webhook at once."""
    async with environment.installation(kind) as installation:
        heavy_user_flow, *others = await create_flows(installation, sizes.others + 1, tiers=[Tier.PRO])
        await accept_backlog(installation, [heavy_user_flow], sizes.flood)
        async with installation.serve() as (process, client):
            await asyncio.sleep(min(WARM_UP_SECONDS, sizes.flood / 1_000))
            responses = await asyncio.gather(
                *(client.post(f"/webhooks/{flow.webhook_token}", json={"hello": "world"}) for flow in others)
            )
            for response in responses:
                response.raise_for_status()
            ids = [flow.id for flow in others]
            async with asyncio.timeout(120):
                while len(claim_latencies_ms(await read_timings(installation, ids))) < len(others):
                    process.require_running()
                    await asyncio.sleep(0.2)
            left = sum(timing.completed_at is None for timing in await read_timings(installation, [heavy_user_flow.id]))
        waits = claim_latencies_ms(await read_timings(installation, ids))
    description = f"{len(others)} users, {sizes.flood} executions of another user ({left} left): accepted to claimed"
    return [Result("fairness", kind, description, summarize(waits, digits=0), "max <= 2,000 ms")]
