"""How many executions wait for a slow HTTP server at once, in one worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.figures import Figure
from benchmarks.installation import Laboratory
from benchmarks.sizes import Sizes
from benchmarks.timings import read_timings, seconds_of_all
from benchmarks.workload import ONE_REQUEST, accept_backlog, create_flows

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nok"
BACKLOG = 4_096


class SlowServer:
    """Counts who waits for it at the same time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting = 0
        self.peak = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self._waiting += 1
        self.peak = max(self.peak, self._waiting)
        await asyncio.sleep(self._seconds)
        self._waiting -= 1
        writer.write(ANSWER)
        await writer.drain()
        writer.close()


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """Each execution is one request; users and worker have a place for each of them."""
    places = str(sizes.waiting)
    async with _slow_server(sizes.answer_seconds) as (server, url), laboratory.installation(kind) as installation:
        flows = await create_flows(installation, sizes.users, ONE_REQUEST.format(url=url))
        await accept_backlog(installation, flows, sizes.waiting)
        settings = {
            "WORKER_CONCURRENCY": places,
            "CONCURRENCY_ENTERPRISE": places,
            "CONCURRENCY_HIGH_FREQUENCY": places,
            "SSRF_ALLOW_CIDRS": "127.0.0.0/8",
        }
        async with installation.workers(settings=settings) as processes:
            await installation.until_ended(processes)
        timings = await read_timings(installation)
    seconds = seconds_of_all(timings)
    what = f"{len(timings)} executions, answers after {sizes.answer_seconds:g} s"
    shown = "WORKER_CONCURRENCY, CONCURRENCY_ENTERPRISE and CONCURRENCY_HIGH_FREQUENCY"
    return [
        Figure("waiting", kind, f"{what}: requests open at once", str(server.peak), f">= {sizes.waiting}"),
        Figure("waiting", kind, f"from the first to the last, {shown} at {places}", f"{seconds:.1f} s"),
    ]


@asynccontextmanager
async def _slow_server(seconds: float) -> AsyncIterator[tuple[SlowServer, str]]:
    server = SlowServer(seconds)
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0, backlog=BACKLOG) as listener:
        yield server, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
