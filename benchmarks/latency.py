"""How long an execution waits on an idle installation, from the webhook's acceptance to its first step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from benchmarks.figures import Figure, spread
from benchmarks.installation import SQLITE, Installation, Laboratory
from benchmarks.sizes import Sizes
from benchmarks.timings import first_step_after_ms, picked_up_after_ms, read_timings
from benchmarks.workload import create_flows

TARGET = "p50 <= 40 ms"
PAUSE_SECONDS = 0.15
"""Between two webhooks, on average: long enough for the one before to have ended."""


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """One webhook after another, with pauses of random length."""
    figures = await _measure(laboratory, kind, sizes, apart=False)
    if kind != SQLITE:
        figures += await _measure(laboratory, kind, sizes, apart=True)
    return figures


async def _measure(laboratory: Laboratory, kind: str, sizes: Sizes, *, apart: bool) -> list[Figure]:
    async with laboratory.installation(kind) as installation:
        flows = await create_flows(installation, 1)
        async with _ready(installation, apart=apart) as client:
            for _ in range(sizes.latency_samples):
                response = await client.post(f"/webhooks/{flows[0].webhook_token}", json={"hello": "world"})
                response.raise_for_status()
                await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            await installation.until_ended([])
        timings = await read_timings(installation)
    where = "API and worker apart" if apart else "worker in the API's process"
    return [
        Figure("latency", kind, f"accepted -> picked up, {where}", spread(picked_up_after_ms(timings))),
        Figure("latency", kind, f"accepted -> first step, {where}", spread(first_step_after_ms(timings)), TARGET),
    ]


@asynccontextmanager
async def _ready(installation: Installation, *, apart: bool) -> AsyncIterator[httpx.AsyncClient]:
    """An installation that has warmed up."""
    async with AsyncExitStack() as stack:
        if apart:
            await stack.enter_async_context(installation.workers())
        serving = installation.serve(*(["--no-worker"] if apart else []))
        _, client = await stack.enter_async_context(serving)
        await installation.until_workers(1)
        yield client
