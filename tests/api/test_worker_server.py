"""Health of a process that works: ready while its engine is, told at a worker's own port."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from bloxserver.api.worker_server import create_worker_app, serve_worker_endpoints
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.api.contract import covers
from tests.clients.loopback import answer, running_server
from tests.engine.live import ENDED, accept, eventually, started_flow
from tests.engine.test_processes import Process, free_port, until_ready
from tests.served import serving

TOKEN = "a-token-for-metrics"


@asynccontextmanager
async def probing(engine: Engine, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A worker's routes, on this database."""
    probes = create_worker_app(engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=probes), base_url="http://worker") as client:
        with serving(probes, database):
            yield client


async def readiness(client: httpx.AsyncClient) -> tuple[int, str, list[str]]:
    response = await client.get("/health/ready")
    body = response.json()
    assert body.keys() == {"status", "timestamp", "checks"} | ({"errors"} if response.status_code == 503 else set())
    assert (body["checks"]["database"], body["checks"]["migrations"]) == ("ok", "ok")
    return response.status_code, body["checks"]["engine"], body.get("errors", [])


async def until(client: httpx.AsyncClient, status: int) -> list[str]:
    """The errors of readiness once it has this status."""
    async with asyncio.timeout(20):
        while True:
            code, _, errors = await readiness(client)
            if code == status:
                return errors
            await asyncio.sleep(0.02)


@covers("public.ready.engine")
async def test_a_worker_is_ready_from_its_start_to_its_stop(live_settings: Settings, live_database: Database) -> None:
    engine = Engine(live_settings, live_database, run_worker=True)
    async with probing(engine, live_database) as client:
        assert await readiness(client) == (503, "failed", ["engine: the engine has not started yet"])
        await engine.start()
        assert await readiness(client) == (200, "ok", [])
        await engine.stop()
        assert await readiness(client) == (503, "failed", ["engine: the engine is stopping: it takes no more work"])


@covers("public.ready.engine")
async def test_one_whose_heart_does_not_beat_is_not_ready(live_settings: Settings, live_database: Database) -> None:
    slow = live_settings.model_copy(update={"heartbeat_interval_seconds": 60.0, "heartbeat_timeout_seconds": 0.5})
    engine = Engine(slow, live_database, run_worker=True)
    async with probing(engine, live_database) as client:
        await engine.start()
        (error,) = await until(client, 503)
        assert error == "engine: the heartbeat cannot be stored: other workers take this one for dead"
        await engine.stop()


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
            await until_ready(client)
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
            assert await until(client, 503) == ["engine: the engine is stopping: it takes no more work"]
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
    assert "WORKER_HOST, WORKER_PORT: cannot listen there (EADDRINUSE)" in worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()


async def test_without_a_port_nothing_is_served(live_settings: Settings, live_database: Database) -> None:
    engine = Engine(live_settings, live_database, run_worker=True)
    before = asyncio.all_tasks()
    async with serve_worker_endpoints(live_settings, engine):
        assert asyncio.all_tasks() == before


async def test_an_api_without_a_worker_has_no_such_check(live_client: httpx.AsyncClient) -> None:
    assert (await live_client.get("/health/ready")).json()["checks"] == {"database": "ok", "migrations": "ok"}
