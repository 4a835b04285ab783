"""How long others wait behind one user's flood."""

from __future__ import annotations

import asyncio

from benchmarks.figures import Figure, spread
from benchmarks.installation import Laboratory
from benchmarks.sizes import Sizes
from benchmarks.timings import picked_up_after_ms, read_timings
from benchmarks.workload import accept_backlog, create_flows
from bloxserver.models.enums import Tier

BUSY_SECONDS = 3
"""How long the flood is worked at before the others come."""


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """All in one tier: the flood is there first, then each of the others sends a webhook, all at the same time."""
    async with laboratory.installation(kind) as installation:
        flooder, *others = await create_flows(installation, sizes.others + 1, tiers=[Tier.PRO])
        await accept_backlog(installation, [flooder], sizes.flood)
        async with installation.serve() as (process, client):
            await asyncio.sleep(min(BUSY_SECONDS, sizes.flood / 1_000))
            responses = await asyncio.gather(
                *(client.post(f"/webhooks/{flow.webhook_token}", json={"hello": "world"}) for flow in others)
            )
            for response in responses:
                response.raise_for_status()
            ids = [flow.id for flow in others]
            async with asyncio.timeout(120):
                while len(picked_up_after_ms(await read_timings(installation, ids))) < len(others):
                    process.require_running()
                    await asyncio.sleep(0.2)
            left = sum(timing.completed_at is None for timing in await read_timings(installation, [flooder.id]))
        waits = picked_up_after_ms(await read_timings(installation, ids))
    what = f"{len(others)} users behind {sizes.flood} executions of one ({left} left): accepted -> picked up"
    return [Figure("fairness", kind, what, spread(waits, digits=0), "max <= 2,000 ms")]
