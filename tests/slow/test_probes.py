"""The health endpoints of a worker process."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import httpx
import pytest

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.api.contract import covers
from tests.api.test_worker_server import TOKEN, until
from tests.clients.loopback import answer, running_server
from tests.engine.running_engine import ENDED, accept, eventually, started_flow
from tests.processes import Process, free_port, wait_until_ready

HANGING = """
organism: {{name: hanging}}
listeners:
  - {{name: hang, description: d, handler: http.request, config: {{method: GET, url: "{url}"}}}}
"""


@pytest.fixture
def worker_port(live_settings: Settings) -> int:
    if live_settings.uses_sqlite:
        pytest.skip("SQLite has no worker of its own")
    return free_port()


@covers("worker.probes", "public.ready.engine")
async def test_a_worker_process_tells_that_it_drains(
    live_settings: Settings, live_client: httpx.AsyncClient, worker_port: int, tmp_path: Path
) -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def hang(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await release.wait()
        writer.write(answer(b"done"))

    worker = Process(
        live_settings,
        tmp_path,
        "worker",
        WORKER_PORT=str(worker_port),
        METRICS_TOKEN=TOKEN,
        SHUTDOWN_GRACE_SECONDS="20",
    )
    try:
        async with (
            running_server() as server,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{worker_port}") as client,
        ):
            await wait_until_ready(client)
            assert (await client.get("/health/live")).json()["status"] == "alive"
            assert (await client.get("/api/v1/flows")).status_code == 404
            assert (await client.get("/docs")).status_code == 404
            assert (await client.get("/metrics")).status_code == 401
            server.answers["/hang"] = hang
            path = await started_flow(live_client, HANGING.format(url=server.url("/hang")))
            execution = await accept(live_client, path)
            async with asyncio.timeout(20):
                await asked.wait()
            ending = asyncio.create_task(asyncio.to_thread(worker.end, signal.SIGTERM))
            assert await until(client, 503) == ["engine: the engine is shutting down"]
            assert (await client.get("/health/live")).status_code == 200
            metrics = (await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).text
            assert 'bloxserver_queue_executions{state="running",tier="pro"} 1.0' in metrics
            assert "bloxserver_workers_alive 1.0" in metrics
            release.set()
            assert await ending == 0
        assert (await eventually(live_client, execution, ENDED))["status"] == "success"
    finally:
        release.set()
        worker.kill()


async def test_a_port_that_is_taken_is_said(
    live_settings: Settings, live_database: Database, worker_port: int, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", worker_port)):
        worker = Process(live_settings, tmp_path, "worker", WORKER_PORT=str(worker_port))
        assert await asyncio.to_thread(worker.wait) == 1
    assert "WORKER_HOST, WORKER_PORT: cannot listen on this address (EADDRINUSE)" in worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()
