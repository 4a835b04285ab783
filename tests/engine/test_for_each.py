"""Loops that an engine runs, over HTTP: a thousand items, retries from the failed item, and interruptions."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamWriter
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.clients.loopback import LoopbackServer, Received, answer, running_server
from tests.engine.running_engine import ENDED, accept, eventually, run, running_engine, started_flow, steps_of

ETL = """
organism: {{name: etl}}
listeners:
  - name: fetch
    description: Fetches the rows
    handler: http.request
    config: {{url: "{url}/rows"}}
    peers: [store]
  - name: store
    description: Stores each row
    handler: http.request
    for_each: payload.body.rows.filter(row, row.price > 0)
    parallel: 20
    {options}
    config:
      method: POST
      url: "{url}/store"
      body: {{id: "{{{{ payload.id }}}}", gross: "{{{{ payload.price * 2 }}}}", place: "{{{{ index }}}}"}}
    peers: [report]
  - name: report
    description: Counts the rows
    handler: transform
    config: {{expression: '{{"stored": payload.size(), "last": payload[payload.size() - 1]}}'}}
"""


def definition(server: LoopbackServer, options: str = "retries: 0") -> str:
    return ETL.format(url=server.url(""), options=options)


def json_answer(value: Any) -> bytes:
    return answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def stored(server: LoopbackServer) -> list[Received]:
    return [request for request in server.received if request.path == "/store"]


def places(server: LoopbackServer) -> Counter[int]:
    return Counter(json.loads(request.body)["place"] for request in stored(server))


async def all_steps(client: httpx.AsyncClient, execution: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    page = 1
    while items := (await client.get(f"{execution}/steps", params={"page": page, "page_size": 100})).json()["items"]:
        found += items
        page += 1
    return found


async def number_of_successes(client: httpx.AsyncClient, execution: str) -> int:
    return sum(step["status"] == "success" for step in await all_steps(client, execution))


@pytest.fixture
async def server() -> AsyncIterator[LoopbackServer]:
    async with running_server() as server:
        yield server


def serve(server: LoopbackServer, rows: int, failing: set[int] | None = None, held: set[int] | None = None) -> None:
    """Answer with `rows` rows. Rows at positions in `failing` are refused, and those in `held` have no answer."""

    async def store(writer: StreamWriter) -> None:
        body = json.loads(server.received[-1].body)
        if body["place"] in (held or ()):
            await asyncio.Event().wait()
        refused = body["place"] in (failing or ())
        writer.write(answer(status="422 No") if refused else json_answer({"id": body["id"], "gross": body["gross"]}))

    found = [{"id": f"row-{number}", "price": number} for number in range(1, rows + 1)]
    server.answers = {"/rows": json_answer({"rows": [*found, {"id": "free", "price": 0}]}), "/store": store}


async def test_thousand_items(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, server: LoopbackServer
) -> None:
    serve(server, 1_000)
    async with running_engine(live_settings, live_database):
        path = await started_flow(live_client, definition(server))
        execution = await accept(live_client, path)
        ended = await eventually(live_client, execution, ENDED)
    assert (ended["status"], ended["errorMessage"]) == ("success", None)
    output = json.loads(ended["outputPayload"])
    assert (output["stored"], output["last"]["body"]) == (1_000, {"id": "row-1000", "gross": 2_000})
    assert places(server) == Counter(range(1_000))
    assert len({request.headers["idempotency-key"] for request in stored(server)}) == 1_000
    steps = await all_steps(live_client, execution)
    assert len(steps) == 1_003
    (loop,) = [step for step in steps if step["listener"] == "store" and step["itemIndex"] is None]
    items = {
        step["itemIndex"]: step for step in steps if step["parentId"] == loop["id"] and step["listener"] == "store"
    }
    assert sorted(items) == [*range(1_000)]
    assert json.loads(items[41]["inputPayload"]) == {"id": "row-42", "price": 42}
    assert len(json.loads(loop["outputPayload"])) == 1_000


@pytest.mark.parametrize("version", ["same", "latest"])
async def test_retry_begins_at_the_failed_item(
    live_client: httpx.AsyncClient,
    live_settings: Settings,
    live_database: Database,
    server: LoopbackServer,
    version: str,
) -> None:
    serve(server, 30, failing={25})
    async with running_engine(live_settings, live_database):
        path = await started_flow(live_client, definition(server).replace("parallel: 20", "parallel: 1"))
        execution = await accept(live_client, path)
        failed = await eventually(live_client, execution, ENDED)
        assert failed["errorMessage"] == "store: item 25: 127.0.0.1 answered 422 Unprocessable Entity"
        assert places(server) == Counter(range(26))
        serve(server, 30)
        options = {"from": "failed", "version": version}
        retried = (await live_client.post(f"{execution}/retry", params=options)).json()
        again = f"{path}/executions/{retried['id']}"
        ended = await eventually(live_client, again, ENDED)
    assert (ended["status"], ended["errorMessage"]) == ("success", None)
    assert places(server) == Counter({**dict.fromkeys(range(30), 1), 25: 2})
    steps = await all_steps(live_client, again)
    kept = {step["itemIndex"] for step in steps if step["listener"] == "store" and step["copied"]}
    assert kept == {*range(25)}
    (loop,) = [step for step in steps if step["listener"] == "store" and step["itemIndex"] is None]
    assert (loop["status"], loop["attempt"], loop["copied"]) == ("success", 1, False)
    assert [answer["body"]["gross"] for answer in json.loads(loop["outputPayload"])] == [*range(2, 62, 2)]


async def test_changed_list_is_not_mixed_with_the_items_of_the_original(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, server: LoopbackServer
) -> None:
    serve(server, 5, failing={4})
    async with running_engine(live_settings, live_database):
        text = definition(server)
        path = await started_flow(live_client, text)
        execution = await accept(live_client, path)
        assert (await eventually(live_client, execution, ENDED))["status"] == "error"
        await live_client.patch(path, json={"organismYaml": text.replace("row.price > 0", "row.price > 1")})
        options = {"from": "failed", "version": "latest"}
        retried = (await live_client.post(f"{execution}/retry", params=options)).json()
        ended = await eventually(live_client, f"{path}/executions/{retried['id']}", ENDED)
    assert ended["errorMessage"].startswith("store: item ")
    assert ended["errorMessage"].endswith("is not the one that was handled before: for_each gives another list now")


async def test_interrupted_loop_continues_without_its_finished_items(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, server: LoopbackServer
) -> None:
    held = {3, 17, 33}
    serve(server, 40, held=held)
    async with running_engine(live_settings, live_database):
        path = await started_flow(live_client, definition(server))
        execution = await accept(live_client, path)
        async with asyncio.timeout(40):
            while await number_of_successes(live_client, execution) < 38:  # noqa: ASYNC110  # no event tells this
                await asyncio.sleep(0.02)
    first = {json.loads(request.body)["place"]: request for request in stored(server)}
    serve(server, 40)
    async with running_engine(live_settings, live_database):
        ended = await eventually(live_client, execution, ENDED)
    assert (ended["status"], json.loads(ended["outputPayload"])["stored"]) == ("success", 40)
    assert places(server) == Counter({**dict.fromkeys(range(40), 1), **dict.fromkeys(held, 2)})
    for request in stored(server):
        same = first[json.loads(request.body)["place"]]
        assert request.headers["idempotency-key"] == same.headers["idempotency-key"]


async def test_errors_are_collected(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, server: LoopbackServer
) -> None:
    serve(server, 3, failing={1})
    async with running_engine(live_settings, live_database):
        text = definition(server, "on_item_error: collect").replace("peers: [report]", "peers: []")
        ended = await run(live_client, await started_flow(live_client, text))
    first, second, third = json.loads(ended["outputPayload"])
    assert (first["body"]["id"], third["body"]["id"]) == ("row-1", "row-3")
    message = "127.0.0.1 answered 422 Unprocessable Entity"
    error = {"listener": "store", "code": "http_error_status", "message": message, "attempt": 1, "index": 1}
    assert second == {"error": error}


async def test_each_item_waits_and_calls_a_flow(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    doubling = """
organism: {name: doubling}
listeners:
  - {name: wait, description: d, handler: delay, config: {seconds: 0.1}, peers: [double]}
  - {name: double, description: d, handler: transform, config: {expression: payload.n * 2}}
"""
    calling = """
organism: {name: calling}
listeners:
  - {name: each, description: d, handler: flow.call, config: {flow: Doubling}, for_each: payload.rows, parallel: 4}
"""
    async with running_engine(live_settings, live_database):
        await started_flow(live_client, doubling, name="Doubling")
        path = await started_flow(live_client, calling)
        execution = await accept(live_client, path, {"rows": [{"n": n} for n in range(6)]})
        ended = await eventually(live_client, execution, ENDED)
        assert json.loads(ended["outputPayload"]) == [0, 2, 4, 6, 8, 10]
        called = [step["calledExecutionId"] for step in await steps_of(live_client, execution)]
    assert len({one for one in called if one is not None}) == 6
