"""Webhooks that respond with the result of an execution of another process."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import pytest

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.engine.run.test_runner import eventually
from tests.processes import Process, free_port, wait_until_ready

ORGANISM = """\
organism: {name: responding}
listeners:
  - {name: read, description: d, handler: echo, peers: [reply, done]}
  - {name: reply, description: d, handler: respond, config: {status: 201, body: "{{ payload.n }}"}}
  - {name: done, description: d, handler: %s}
"""
PROMPT_SECONDS = 10
"""Much less than `respond_seconds`."""


@pytest.mark.parametrize(
    ("respond", "last", "status", "body"),
    [("end", "stop", 200, {"n": 7}), ("listener", "delay, config: {seconds: 3600}", 201, 7)],
)
async def test_response_comes_from_the_worker_in_another_process(
    live_settings: Settings, live_database: Database, tmp_path: Path, respond: str, last: str, status: int, body: object
) -> None:
    port = free_port()
    alone = live_settings.uses_sqlite  # the API's process is the worker
    serving = ["serve", "--port", str(port)]
    running = [Process(live_settings, tmp_path, *(serving if alone else [*serving, "--no-worker"]))]
    if not alone:
        running.append(Process(live_settings, tmp_path, "worker"))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            await wait_until_ready(client)
            created = await client.post("/api/v1/flows", json={"name": "A flow", "organismYaml": ORGANISM % last})
            path = f"/api/v1/flows/{created.json()['id']}"
            await client.post(f"{path}/start")
            await eventually(client, path, {"running"})
            config = {"respond": respond, "respond_seconds": 50}
            trigger = {"type": "webhook", "name": "A webhook", "config": config}
            token = (await client.post(f"{path}/triggers", json=trigger)).json()["webhookToken"]
            began = time.monotonic()
            response = await client.post(f"/webhooks/{token}", json={"n": 7})
            assert time.monotonic() - began < PROMPT_SECONDS
        assert (response.status_code, response.json()) == (status, body)
    finally:
        for process in running:
            process.end(signal.SIGKILL)
