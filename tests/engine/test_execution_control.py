"""Retries, cancellation, event streams and stops of executions that an engine runs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from bloxserver.engine.engine import Engine
from tests.api.contract import API, eventually
from tests.api.sse import parse_events

ENDED = {"success", "error", "timeout", "cancelled"}
CHAIN = """
organism:
  name: chain
listeners:
  - {name: first, description: Passes on, handler: echo, peers: [second]}
  - {name: second, description: Reads, handler: %s}
"""
SLOW = """
organism:
  name: slow
listeners:
  - {name: wait, description: Waits, handler: delay, config: {seconds: 3600}}
"""


async def started(client: httpx.AsyncClient, organism: str) -> str:
    """The path of a running flow."""
    created = await client.post(f"{API}/flows", json={"name": "A flow", "organismYaml": organism})
    path = f"{API}/flows/{created.json()['id']}"
    await client.post(f"{path}/start")
    flow = await eventually(client, path, {"running", "error"})
    assert flow["status"] == "running", flow["errorMessage"]
    return path


async def accepted(client: httpx.AsyncClient, path: str, payload: object = None) -> str:
    """The path of an execution that was accepted."""
    response = await client.post(f"{path}/executions/run", json={"inputPayload": payload})
    return f"{path}/executions/{response.json()['id']}"


async def steps(client: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await client.get(f"{path}/steps")).json()["items"]
    return items


async def waiting_step(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """The only step of an execution, when it waits."""
    async with asyncio.timeout(20):
        while True:
            if waiting := [step for step in await steps(client, path) if step["status"] == "waiting"]:
                return waiting[0]
            await asyncio.sleep(0.02)


async def test_retry_from_the_failed_step_uses_the_corrected_definition(
    live_client: httpx.AsyncClient, engine: Engine
) -> None:
    path = await started(live_client, CHAIN % "json.parse")
    execution = await accepted(live_client, path, {"no": "text"})
    failed = await eventually(live_client, execution, ENDED)
    assert (failed["status"], failed["flowVersion"]) == ("error", 1)
    first, second = await steps(live_client, execution)
    assert [(step["listener"], step["status"], step["errorCode"]) for step in (first, second)] == [
        ("first", "success", None),
        ("second", "error", "missing_value"),
    ]

    same = (await live_client.post(f"{execution}/retry", params={"from": "failed"})).json()
    again = await eventually(live_client, f"{path}/executions/{same['id']}", ENDED)
    assert (again["status"], again["retryOf"], again["flowVersion"]) == ("error", failed["id"], 1)

    await live_client.patch(path, json={"organismYaml": CHAIN % "echo"})
    retried = (await live_client.post(f"{execution}/retry", params={"from": "failed", "version": "latest"})).json()
    ended = await eventually(live_client, f"{path}/executions/{retried['id']}", ENDED)
    assert (ended["status"], ended["flowVersion"]) == ("success", 2)
    assert json.loads(ended["outputPayload"]) == {"no": "text"}
    copied, fresh = await steps(live_client, f"{path}/executions/{retried['id']}")
    assert (copied["copied"], fresh["copied"]) == (True, False)
    assert (copied["startedAt"], copied["outputPayload"]) == (first["startedAt"], first["outputPayload"])
    assert fresh["parentId"] == copied["id"] != first["id"]


async def test_event_stream_matches_the_timeline(live_client: httpx.AsyncClient, engine: Engine) -> None:
    path = await started(live_client, CHAIN % "echo")
    execution = await accepted(live_client, path, {"a": 1})
    async with asyncio.timeout(20):
        events = parse_events((await live_client.get(f"{execution}/events")).text)
    assert [event.kind for event in events] == ["execution", *["step"] * (len(events) - 2), "execution"]
    assert (events[-1].id, events[-1].data["status"]) == ("end", "success")
    numbers = [int(event.id or 0) for event in events[1:-1]]
    assert numbers == sorted(set(numbers))
    last = {event.data["id"]: event.data for event in events[1:-1]}
    timeline = await steps(live_client, execution)
    payloads = {"inputPayload", "outputPayload", "payloadsOmitted"}
    assert last == {step["id"]: {name: step[name] for name in step.keys() - payloads} for step in timeline}


async def test_waiting_execution_can_be_cancelled(live_client: httpx.AsyncClient, engine: Engine) -> None:
    path = await started(live_client, SLOW)
    execution = await accepted(live_client, path)
    step = await waiting_step(live_client, execution)
    assert step["resumesAt"] > step["startedAt"]
    assert (await live_client.post(f"{execution}/cancel")).json()["status"] == "cancelled"
    (step,) = await steps(live_client, execution)
    assert (step["status"], step["resumesAt"]) == ("cancelled", None)
    retried = (await live_client.post(f"{execution}/retry", params={"from": "failed"})).json()
    assert await steps(live_client, f"{path}/executions/{retried['id']}") == []


async def test_stop_completes_when_the_last_execution_ends(live_client: httpx.AsyncClient, engine: Engine) -> None:
    path = await started(live_client, SLOW)
    execution = await accepted(live_client, path)
    assert (await live_client.post(f"{path}/stop")).json()["status"] == "stopping"
    refused = await live_client.post(f"{path}/executions/run")
    assert refused.json()["code"] == "flow_not_running"
    await waiting_step(live_client, execution)
    assert (await live_client.get(path)).json()["status"] == "stopping", "it has its time"
    await live_client.post(f"{execution}/cancel")
    assert (await eventually(live_client, path, {"stopped"}))["status"] == "stopped"
