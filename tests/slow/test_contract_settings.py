"""Statements of the contract about the start of a process."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.api.contract import API, covers, eventually, running_flow

ROOT = Path(__file__).parents[2]
BROKEN = {
    "PORT": "many",
    "DATABASE_URL": "secret-word://",
    "ENABLE_DOCS": "perhaps",
    "MAX_BODY_BYTES": "-1",
    "ENV": "moon",
    "CLERK_ISSUER": "nonsense",
}
START = """
import asyncio
from bloxserver.api.main import app
from bloxserver.errors import SettingsError

async def start():
    async with app.router.lifespan_context(app):
        pass

print(app.title)
try:
    asyncio.run(start())
except SettingsError as refusal:
    print(*refusal.problems, sep="\\n")
"""


@covers("env.imports")
async def test_importing_survives_what_starting_refuses() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        START,
        env=os.environ | BROKEN | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    title, *problems = out.decode().splitlines()
    assert title == "BloxServer API"
    named = {problem.split(":")[0] for problem in problems}
    assert named >= {"PORT", "DATABASE_URL", "ENABLE_DOCS", "MAX_BODY_BYTES", "ENV"}
    assert "secret-word" not in out.decode() + err.decode()


@covers("env.serve")
@pytest.mark.parametrize("module", ["uvicorn", "bloxserver.api.main"])
async def test_it_serves_and_runs_executions(module: str, tmp_path: Path) -> None:
    async with served(module, tmp_path) as client:
        path = await running_flow(client)
        accepted = (await client.post(f"{path}/executions/run", json={"inputPayload": {"name": "Ada"}})).json()
        ended = await eventually(client, f"{path}/executions/{accepted['id']}", {"success", "error"})
        assert (ended["status"], "Ada" in ended["outputPayload"]) == ("success", True)
        assert (await client.get("/health/ready")).json()["checks"] == {
            "database": "ok",
            "migrations": "ok",
            "engine": "ok",
        }
        assert (await client.get(f"{API}/flows")).json()["total"] == 1


@asynccontextmanager
async def served(module: str, directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app in a separate process, started by the documented command."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    variables = {
        "DATABASE_URL": f"sqlite+aiosqlite:///{directory}/served.db",
        "HOST": "127.0.0.1",
        "PORT": port,
        "PYTHONPATH": str(ROOT),
    }
    arguments = ["bloxserver.api.main:app", "--port", port] if module == "uvicorn" else []
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=directory,
        env=os.environ | variables,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(30):
                while True:
                    with suppress(httpx.TransportError):
                        await client.get("/health/live")
                        break
                    await asyncio.sleep(0.05)
            yield client
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() in (0, -15)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
