"""Measures the latency of an idle installation, from the acceptance of a webhook to the first step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from benchmarks.installation import SQLITE, BenchmarkEnvironment, Installation
from benchmarks.results import Result, summarize
from benchmarks.sizes import Sizes
from benchmarks.timings import claim_latencies_ms, first_step_latencies_ms, read_timings
from benchmarks.workload import create_flows

TARGET = "p50 <= 40 ms"
INTERVAL_SECONDS = 0.15
"""Average time between two webhooks, long enough for the previous execution to end."""


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Send webhooks one after another at random intervals."""
    results = await _measure(environment, kind, sizes, separate=False)
    if kind != SQLITE:
        results += await _measure(environment, kind, sizes, separate=True)
    return results


async def _measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes, *, separate: bool) -> list[Result]:
    async with environment.installation(kind) as installation:
        flows = await create_flows(installation, 1)
        async with _start(installation, separate=separate) as client:
            for _ in range(sizes.latency_samples):
                response = await client.post(f"/webhooks/{flows[0].webhook_token}", json={"hello": "world"})
                response.raise_for_status()
                await asyncio.sleep(INTERVAL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            await installation.wait_for_end([])
        timings = await read_timings(installation)
    where = "separate API and worker" if separate else "worker in the API process"
    return [
        Result("latency", kind, f"accepted to claimed, {where}", summarize(claim_latencies_ms(timings))),
        Result(
            "latency", kind, f"accepted to first step, {where}", summarize(first_step_latencies_ms(timings)), TARGET
        ),
    ]


@asynccontextmanager
async def _start(installation: Installation, *, separate: bool) -> AsyncIterator[httpx.AsyncClient]:
    """Start the processes and wait until they are ready. Yields a client."""
    async with AsyncExitStack() as stack:
        if separate:
            await stack.enter_async_context(installation.workers())
        serving = installation.serve(*(["--no-worker"] if separate else []))
        _, client = await stack.enter_async_context(serving)
        await installation.wait_for_workers(1)
        yield client
