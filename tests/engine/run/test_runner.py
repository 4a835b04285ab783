"""The complete path of an execution: a request accepts it, a worker claims it, and it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus
from tests.factories import create_execution, create_flow, create_user

DELAYED = """\
organism: {name: delayed}
listeners:
  - {name: wait, description: d, handler: delay, config: {seconds: 0.2}, peers: [last]}
  - {name: last, description: d, handler: echo}
"""


async def eventually(client: httpx.AsyncClient, path: str, wanted: set[str]) -> dict[str, Any]:
    """The object at `path`, when its status is one of `wanted`."""
    async with asyncio.timeout(20):
        while True:
            body: dict[str, Any] = (await client.get(path)).json()
            if body["status"] in wanted:
                return body
            await asyncio.sleep(0.02)


async def started_flow(client: httpx.AsyncClient, organism: str | None, settled: str) -> str:
    created = await client.post("/api/v1/flows", json={"name": "A flow", "organismYaml": organism})
    path = f"/api/v1/flows/{created.json()['id']}"
    assert (await client.post(f"{path}/start")).json()["status"] == "starting"
    await eventually(client, path, {settled})
    return path


async def run(client: httpx.AsyncClient, path: str, payload: Any) -> dict[str, Any]:
    accepted = await client.post(f"{path}/executions/run", json={"inputPayload": payload})
    return await eventually(client, f"{path}/executions/{accepted.json()['id']}", {"success", "error", "timeout"})


async def test_a_flow_starts_runs_and_stops(live_client: httpx.AsyncClient, engine: Engine) -> None:
    path = await started_flow(live_client, None, "running")
    greetings = {'{"name": "Ada"}': "Ada", None: "World", "Grace": "Grace", '{"name": 5}': "World", "[1, 2]": "World"}
    for payload, name in greetings.items():
        ended = await run(live_client, path, payload)
        assert (ended["status"], ended["outputPayload"]) == ("success", f'{{"message": "Hello, {name}!"}}')
        assert ended["inputPayload"] == payload
        assert ended["startedAt"] <= ended["pickedUpAt"] <= ended["completedAt"]

    webhook = {"type": "webhook", "name": "w", "config": {}}
    trigger = (await live_client.post(f"{path}/triggers", json=webhook)).json()
    accepted = await live_client.post(f"/webhooks/{trigger['webhookToken']}", content=b'{"name": "Hook"}')
    by_hook = await eventually(live_client, f"{path}/executions/{accepted.json()['executionId']}", {"success"})
    assert by_hook["outputPayload"] == '{"message": "Hello, Hook!"}'
    assert by_hook["triggerId"] == trigger["id"]

    figures = (await live_client.get(f"{path}/executions/stats")).json()
    assert (figures["executionsTotal"], figures["executionsSuccess"]) == (6, 6)

    assert (await live_client.post(f"{path}/stop")).json()["status"] == "stopping"
    await eventually(live_client, path, {"stopped"})
    assert (await live_client.post(f"{path}/executions/run")).status_code == 400


async def test_invalid_definition_fails_at_start_and_can_be_corrected(
    live_client: httpx.AsyncClient, engine: Engine
) -> None:
    broken = "organism: {name: x}\nlisteners:\n  - {name: a, description: d, handler: ecko}\n"
    path = await started_flow(live_client, broken, "error")
    flow = (await live_client.get(path)).json()
    assert flow["errorMessage"] == 'line 3, column 40: unknown handler "ecko"; did you mean "echo"?'
    await live_client.patch(path, json={"organismYaml": broken.replace("ecko", "echo")})
    assert (await live_client.post(f"{path}/start")).json()["errorMessage"] is None
    await eventually(live_client, path, {"running"})
    assert (await run(live_client, path, [1]))["outputPayload"] == "[1]"

    await live_client.patch(path, json={"organismYaml": broken})
    assert (await run(live_client, path, [2]))["status"] == "success", "the started version stays armed"


async def test_delay_is_resumed_and_rows_inserted_by_hand_run(
    live_client: httpx.AsyncClient, live_database: Database, engine: Engine
) -> None:
    path = await started_flow(live_client, DELAYED, "running")
    waited = await run(live_client, path, {"x": 1})
    assert (waited["status"], waited["outputPayload"]) == ("success", '{"x": 1}')
    assert waited["durationMs"] >= 200

    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        execution = await create_execution(session, flow, input_payload="Ada")
    async with asyncio.timeout(20):
        while True:
            async with live_database.sessions() as session:
                row = await session.get_one(ExecutionRecord, execution.id)
            if row.status is not ExecutionStatus.RUNNING:
                break
            await asyncio.sleep(0.05)
    assert row.output_payload == '{"message": "Hello, Ada!"}'
