"""The whole path: a request accepts an execution, the engine runs it to its end."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from bloxserver.engine.engine import Engine


async def eventually(client: httpx.AsyncClient, path: str, wanted: Any, *, member: str = "status") -> dict[str, Any]:
    """The object at `path` once its member has one of the wanted values."""
    async with asyncio.timeout(20):
        while True:
            body: dict[str, Any] = (await client.get(path)).json()
            if body[member] in wanted:
                return body
            await asyncio.sleep(0.02)


async def running_flow(client: httpx.AsyncClient, organism: str | None = None) -> str:
    created = await client.post("/api/v1/flows", json={"name": "A flow", "organismYaml": organism})
    path = f"/api/v1/flows/{created.json()['id']}"
    assert (await client.post(f"{path}/start")).json()["status"] == "starting"
    await eventually(client, path, {"running"})
    return path


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ('{"name": "Ada"}', "Hello, Ada!"),
        (None, "Hello, World!"),
        ("Grace", "Hello, Grace!"),
        ('{"name": 5}', "Hello, World!"),
        ("[1, 2]", "Hello, World!"),
    ],
)
async def test_the_default_organism_greets(
    live_client: httpx.AsyncClient, engine: Engine, payload: str | None, message: str
) -> None:
    path = await running_flow(live_client)
    accepted = await live_client.post(f"{path}/executions/run", json={"inputPayload": payload})
    ended = await eventually(live_client, f"{path}/executions/{accepted.json()['id']}", {"success", "error"})
    assert ended["status"] == "success"
    assert ended["outputPayload"] == f'{{"message": "{message}"}}'
    assert ended["inputPayload"] == payload
    assert ended["durationMs"] >= 0
    assert ended["startedAt"] <= ended["pickedUpAt"] <= ended["completedAt"]
