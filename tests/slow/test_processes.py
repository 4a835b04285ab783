"""Processes that are killed or stopped during executions."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionStepRecord
from bloxserver.settings import Settings
from tests.engine.run.test_runner import eventually
from tests.processes import Process, free_port, wait_until_ready

SLOW_CHAIN = """\
organism: {{name: chain}}
listeners:
  - {{name: first, description: d, handler: http.request, config: {{method: POST, url: "{url}/first"}}, peers: [slow]}}
  - {{name: slow, description: d, handler: http.request, config: {{method: POST, url: "{url}/slow"}}, peers: [last]}}
  - {{name: last, description: d, handler: http.request, config: {{method: POST, url: "{url}/last"}}}}
"""


class Counter:
    """A server on loopback that records the requested paths. The first request for /slow gets no response."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.slow_began = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).split()[1].decode()
        self.calls.append(path)
        if path == "/slow" and self.calls.count("/slow") == 1:
            self.slow_began.set()
            await reader.read()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()


@asynccontextmanager
async def counting_server() -> AsyncIterator[tuple[Counter, str]]:
    counter = Counter()
    async with await asyncio.start_server(counter.answer, "127.0.0.1", 0) as server:
        yield counter, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_that_ends_in_mid_execution_is_replaced(
    live_settings: Settings, live_database: Database, tmp_path: Path, how: signal.Signals
) -> None:
    port = free_port()
    serving = ["serve", "--port", str(port)]
    alone = live_settings.uses_sqlite  # the API's process is the worker
    api = Process(live_settings, tmp_path, *(serving if alone else [*serving, "--no-worker"]))
    worker = api if alone else Process(live_settings, tmp_path, "worker")
    running = {api, worker}
    try:
        async with (
            counting_server() as (counter, url),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            await wait_until_ready(client)
            organism = SLOW_CHAIN.format(url=url)
            flow = (await client.post("/api/v1/flows", json={"name": "chain", "organismYaml": organism})).json()
            path = f"/api/v1/flows/{flow['id']}"
            await client.post(f"{path}/start")
            await eventually(client, path, {"running"})
            execution = (await client.post(f"{path}/executions/run")).json()
            async with asyncio.timeout(30):
                await counter.slow_began.wait()
            status = worker.end(how)
            running.discard(worker)
            assert status == (0 if how is signal.SIGTERM else -signal.SIGKILL)
            running.add(Process(live_settings, tmp_path, *(serving if alone else ["worker"])))
            await wait_until_ready(client)
            ended = await eventually(client, f"{path}/executions/{execution['id']}", {"success", "error", "timeout"})
        assert ended["status"] == "success"
        assert counter.calls == ["/first", "/slow", "/slow", "/last"]
    finally:
        for process in running:
            process.end(signal.SIGKILL)
    async with live_database.sessions() as session:
        steps = await session.scalars(sa.select(ExecutionStepRecord.listener).order_by(ExecutionStepRecord.id))
        assert sorted(steps) == ["first", "last", "slow"]


def test_the_demo_runs(tmp_path: Path) -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "bloxserver", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout
    assert "completed steps ran once, the interrupted step ran again" in demo.stdout
    assert demo.stdout.rstrip().endswith("All checks passed.")
