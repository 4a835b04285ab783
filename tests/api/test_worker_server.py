"""The health checks of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from bloxserver.api.worker_server import create_worker_app, serve_worker_endpoints
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.api.contract import covers
from tests.database_override import override_database

TOKEN = "a-token-for-metrics"


@asynccontextmanager
async def probing(engine: Engine, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a worker's endpoints with this database."""
    probes = create_worker_app(engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=probes), base_url="http://worker") as client:
        with override_database(probes, database):
            yield client


async def readiness(client: httpx.AsyncClient) -> tuple[int, str, list[str]]:
    response = await client.get("/health/ready")
    body = response.json()
    assert body.keys() == {"status", "timestamp", "checks"} | ({"errors"} if response.status_code == 503 else set())
    assert (body["checks"]["database"], body["checks"]["migrations"]) == ("ok", "ok")
    return response.status_code, body["checks"]["engine"], body.get("errors", [])


async def until(client: httpx.AsyncClient, status: int) -> list[str]:
    """The errors of the readiness check once it has this status."""
    async with asyncio.timeout(20):
        while True:
            code, _, errors = await readiness(client)
            if code == status:
                return errors
            await asyncio.sleep(0.02)


@covers("public.ready.engine")
async def test_worker_is_ready_from_start_to_stop(live_settings: Settings, live_database: Database) -> None:
    engine = Engine(live_settings, live_database, run_worker=True)
    async with probing(engine, live_database) as client:
        assert await readiness(client) == (503, "failed", ["engine: the engine has not started yet"])
        await engine.start()
        assert await readiness(client) == (200, "ok", [])
        await engine.stop()
        assert await readiness(client) == (503, "failed", ["engine: the engine is shutting down"])


@covers("public.ready.engine")
async def test_worker_without_heartbeat_is_not_ready(live_settings: Settings, live_database: Database) -> None:
    slow = live_settings.model_copy(update={"heartbeat_interval_seconds": 60.0, "heartbeat_timeout_seconds": 0.5})
    engine = Engine(slow, live_database, run_worker=True)
    async with probing(engine, live_database) as client:
        await engine.start()
        (error,) = await until(client, 503)
        assert error == "engine: the heartbeat has expired: other workers may recover the executions of this worker"
        await engine.stop()


async def test_no_endpoints_are_served_without_a_port(live_settings: Settings, live_database: Database) -> None:
    engine = Engine(live_settings, live_database, run_worker=True)
    before = asyncio.all_tasks()
    async with serve_worker_endpoints(live_settings, engine):
        assert asyncio.all_tasks() == before


async def test_api_without_a_worker_has_no_engine_check(live_client: httpx.AsyncClient) -> None:
    assert (await live_client.get("/health/ready")).json()["checks"] == {"database": "ok", "migrations": "ok"}
