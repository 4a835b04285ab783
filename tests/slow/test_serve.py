"""A server process: when it logs `ready`, and how it stops while responses are open."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.contract import running_flow

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "serve": ("bloxserver", "serve", "--host", "127.0.0.1"),
    "module": ("bloxserver.api.main",),
    "uvicorn": ("uvicorn", "bloxserver.api.main:app", "--host", "127.0.0.1"),
}
STOP_SECONDS = 20
"""Time limit for the stop, shorter than the maximum duration of an open response."""


@asynccontextmanager
async def process_of(command: tuple[str, ...], directory: Path, **variables: str) -> AsyncIterator[Process]:
    settings = {
        "DATABASE_URL": f"sqlite+aiosqlite:///{directory}/test.db",
        "HOST": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
        "RUN_WORKER": "false",  # so that executions stay `running`
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *command),
        cwd=directory,
        env=os.environ | settings | variables,
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def port_of(process: Process) -> int:
    """The port, once the server listens on it."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        async for line in process.stdout:
            if found := re.search(rb"running on http://127\.0\.0\.1:(\d+)", line):
                return int(found[1])
    raise AssertionError("the server did not start")


@pytest.mark.parametrize("command", COMMANDS)
async def test_open_responses_do_not_delay_a_stop(command: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    arguments = COMMANDS[command]
    if command != "module":
        arguments += ("--port", port)
    async with process_of(arguments, tmp_path, PORT=port) as process:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port_of(process)}", timeout=60) as client:
            path = await running_flow(client)
            waiting = asyncio.create_task(client.post(f"{path}/executions/run", params={"wait": "60"}))
            execution = (await client.post(f"{path}/executions/run")).json()
            async with client.stream("GET", f"{path}/executions/{execution['id']}/events") as stream:
                chunks = stream.aiter_text()
                assert "retry:" in await anext(chunks)
                async with asyncio.timeout(STOP_SECONDS):
                    process.terminate()
                    rest = "".join([chunk async for chunk in chunks])
                    assert "event: execution" in rest
                    assert (await waiting).status_code == 202
        assert process.stdout is not None
        async with asyncio.timeout(STOP_SECONDS):
            await process.stdout.read()
            assert await process.wait() in (0, -15)


@pytest.mark.parametrize("command", ["serve", "module"])
async def test_a_server_that_cannot_listen_does_not_say_that_it_is_ready(command: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = (*COMMANDS[command], "--port", port) if command == "serve" else COMMANDS[command]
        async with process_of(arguments, tmp_path, PORT=port) as process:
            output, _ = await process.communicate()
    assert process.returncode == 3
    assert b"address already in use" in output
    assert b"application started" in output
    assert not re.search(rb"\bready\b", output)
