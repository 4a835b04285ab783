"""Measures how many executions of one worker wait for a slow HTTP server concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.installation import BenchmarkEnvironment
from benchmarks.results import Result
from benchmarks.sizes import Sizes
from benchmarks.timings import read_timings, total_seconds
from benchmarks.workload import ONE_REQUEST, accept_backlog, create_flows

RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nok"
BACKLOG = 4_096


class SlowServer:
    """An HTTP server that counts concurrent requests."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting = 0
        self.peak = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self._waiting += 1
        self.peak = max(self.peak, self._waiting)
        await asyncio.sleep(self._seconds)
        self._waiting -= 1
        writer.write(RESPONSE)
        await writer.drain()
        writer.close()


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Each execution sends one request. The concurrency limits allow all of them at once."""
    slots = str(sizes.waiting)
    async with slow_server(sizes.response_seconds) as (server, url), environment.installation(kind) as installation:
        flows = await create_flows(installation, sizes.users, ONE_REQUEST.format(url=url))
        await accept_backlog(installation, flows, sizes.waiting)
        settings = {
            "WORKER_CONCURRENCY": slots,
            "CONCURRENCY_ENTERPRISE": slots,
            "CONCURRENCY_HIGH_FREQUENCY": slots,
            "SSRF_ALLOW_CIDRS": "127.0.0.0/8",
        }
        async with installation.workers(settings=settings) as processes:
            await installation.wait_for_end(processes)
        timings = await read_timings(installation)
    seconds = total_seconds(timings)
    description = f"{len(timings)} executions, responses after {sizes.response_seconds:g} s"
    settings_names = "WORKER_CONCURRENCY, CONCURRENCY_ENTERPRISE and CONCURRENCY_HIGH_FREQUENCY"
    return [
        Result("waiting", kind, f"{description}: concurrent requests", str(server.peak), f">= {sizes.waiting}"),
        Result("waiting", kind, f"total time, {settings_names} = {slots}", f"{seconds:.1f} s"),
    ]


@asynccontextmanager
async def slow_server(seconds: float) -> AsyncIterator[tuple[SlowServer, str]]:
    server = SlowServer(seconds)
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0, backlog=BACKLOG) as listener:
        yield server, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
