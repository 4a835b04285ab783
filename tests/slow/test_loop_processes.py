"""A worker that is killed during two joined loops: no item is lost, and no finished item is handled again."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from uuid import UUID

import httpx
import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import ExecutionStepRecord
from bloxserver.settings import Settings
from tests.engine.run.test_runner import eventually
from tests.processes import Process, free_port, wait_until_ready

ITEMS, KILLS_AFTER = 300, (60, 150)
LOOP = """\
organism: {{name: loops}}
listeners:
  - {{name: start, description: d, handler: echo, peers: [even, odd]}}
  - name: even
    description: d
    handler: http.request
    for_each: payload.numbers.filter(n, n % 2 == 0)
    config: {{url: "{url}/item/{{{{ payload }}}}"}}
    peers: [both]
  - name: odd
    description: d
    handler: http.request
    for_each: payload.numbers.filter(n, n % 2 == 1)
    config: {{url: "{url}/item/{{{{ payload }}}}"}}
    peers: [both]
  - {{name: both, description: d, handler: echo, join: all}}
"""


class SlowServer:
    """Answers after 20 ms, and counts the requests by path."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.keys: dict[str, set[str]] = {}
        self.called = asyncio.Condition()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        number = head.split()[1].rpartition("/")[2]
        async with self.called:
            self.calls[number] += 1
            self.called.notify_all()
        await asyncio.sleep(0.02)
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(number)}\r\nconnection: close\r\n\r\n{number}".encode())
        writer.close()


async def finished_items(database: Database, execution_id: str) -> set[str]:
    """The items whose steps have ended, as texts."""
    step = ExecutionStepRecord
    async with database.transaction(read_only=True) as session:
        statement = sa.select(step.input_payload).where(
            step.execution_id == UUID(execution_id), step.key.endswith("]"), step.status == StepStatus.SUCCESS
        )
        return {str(payload) for payload in await session.scalars(statement)}


async def test_killed_workers_repeat_no_finished_item(
    live_settings: Settings, live_database: Database, tmp_path: Path
) -> None:
    port = free_port()
    serving = ["serve", "--port", str(port)]
    alone = live_settings.uses_sqlite  # the API's process is the worker
    api = Process(live_settings, tmp_path, *(serving if alone else [*serving, "--no-worker"]))
    worker = api if alone else Process(live_settings, tmp_path, "worker")
    running = {api, worker}
    server = SlowServer()
    try:
        async with (
            await asyncio.start_server(server.answer, "127.0.0.1", 0) as listener,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            await wait_until_ready(client)
            url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            flow = (await client.post("/api/v1/flows", json={"name": "x", "organismYaml": LOOP.format(url=url)})).json()
            path = f"/api/v1/flows/{flow['id']}"
            await client.post(f"{path}/start")
            await eventually(client, path, {"running"})
            body = {"inputPayload": {"numbers": [*range(ITEMS)]}}
            execution = (await client.post(f"{path}/executions/run", json=body)).json()
            finished: list[set[str]] = []
            for number in KILLS_AFTER:
                async with asyncio.timeout(30), server.called:
                    await server.called.wait_for(lambda number=number: len(server.calls) >= number)  # type: ignore[misc]
                worker.end(signal.SIGKILL)
                running.discard(worker)
                finished.append(await finished_items(live_database, execution["id"]))
                worker = Process(live_settings, tmp_path, *(serving if alone else ["worker"]))
                running.add(worker)
                await wait_until_ready(client)
            ended = await eventually(client, f"{path}/executions/{execution['id']}", {"success", "error", "timeout"})
    finally:
        for process in running:
            process.end(signal.SIGKILL)
    assert ended["status"] == "success"
    output = json.loads(ended["outputPayload"])
    for begin, name in enumerate(("even", "odd")):
        assert [answer["body"] for answer in output[name]] == [str(n) for n in range(begin, ITEMS, 2)]
    assert 0 < len(finished[0]) < len(finished[1]) < ITEMS
    assert set(server.calls) == {str(n) for n in range(ITEMS)}
    # Items that were finished at the first kill were handled once, and those that were interrupted are few.
    assert {server.calls[item] for item in finished[0]} == {1}
    assert sum(server.calls.values()) <= ITEMS + len(KILLS_AFTER) * 2 * 20
    assert len(await finished_items(live_database, execution["id"])) == ITEMS
