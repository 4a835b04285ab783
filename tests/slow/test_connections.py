"""2,000 half-open connections while other clients send requests."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.processes import free_port
from tests.server import head, status_of
from tests.slow.test_serve import COMMANDS, port_of, process_of

ATTACKERS = [f"127.0.0.{number}" for number in range(2, 12)]
CONNECTIONS_OF_EACH = 200
HALVES = (b"GET / HTTP/1.1\r\nHost: te", head("POST", "/api/v1/flows", "Content-Length: 100") + b"{", b"")


@pytest.fixture(autouse=True)
def _open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    async with process_of((*COMMANDS["serve"], "--port", str(free_port())), tmp_path) as process:
        port = await port_of(process)
        draining = asyncio.create_task(process.stdout.read() if process.stdout else asyncio.sleep(0))
        yield port
        draining.cancel()


async def hold_open(port: int, address: str, number: int, opened: set[tuple[str, int]]) -> None:
    """Keep a half request open, and replace the connection when the server closes it."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            try:
                writer.write(HALVES[number % len(HALVES)])
                opened.add((address, number))
                await reader.read()
            finally:
                writer.close()
        await asyncio.sleep(0.1)


async def latencies(port: int, requests: int) -> list[float]:
    """Send requests, each over a connection of its own. All must succeed."""
    measured = []
    for number in range(requests):
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("GET", ("/api/v1/flows", "/health/live")[number % 2], "Connection: close"))
        assert await status_of(reader) == 200
        await reader.read()
        writer.close()
        measured.append(time.perf_counter() - started)
    return measured


def describe(measured: list[float]) -> str:
    ordered = [1000 * seconds for seconds in sorted(measured)]
    return f"p50 {statistics.median(ordered):.0f} ms, p99 {ordered[len(ordered) * 99 // 100]:.0f} ms"


async def test_half_open_connections_do_not_shut_out_others(port: int) -> None:
    quiet = await latencies(port, 100)
    opened: set[tuple[str, int]] = set()
    attack = [
        asyncio.create_task(hold_open(port, address, number, opened))
        for address in ATTACKERS
        for number in range(CONNECTIONS_OF_EACH)
    ]
    try:
        while len(opened) < len(attack):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        attacked = await latencies(port, 200)
    finally:
        for task in attack:
            task.cancel()
        await asyncio.gather(*attack, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the next iteration of the event loop
    print(f"\n{len(attack)} half-open connections: {describe(attacked)}; without them: {describe(quiet)}")  # noqa: T201
