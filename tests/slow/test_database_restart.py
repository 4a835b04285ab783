"""PostgreSQL stops and starts under requests: they get 503 meanwhile, and succeed within seconds afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from bloxserver.settings import Settings
from tests.api.contract import API, eventually, running_flow
from tests.chaos.waiting import wait_until
from tests.chaos.workspace import PostgresServer, private_workspace
from tests.processes import Process, free_port, wait_until_ready

RECOVERY_SECONDS = 5
ENOUGH = 20
"""Responses of each kind of request while the server is stopped, and successes in a row afterwards."""
ENDED = {"success", "error", "timeout", "cancelled"}


class Answer(NamedTuple):
    at: float
    response: httpx.Response


class Sender:
    """Sends one kind of request again and again, and keeps the answers. A lost connection fails the test."""

    def __init__(self, send: Callable[[], Awaitable[httpx.Response]]) -> None:
        self.answers: list[Answer] = []
        self._send = send

    async def run(self) -> None:
        while True:
            response = await self._send()
            self.answers.append(Answer(time.monotonic(), response))
            await asyncio.sleep(0.01)

    def refused(self) -> list[httpx.Response]:
        return [response for _, response in self.answers if not response.is_success]

    def created(self) -> set[str]:
        """The executions that were accepted."""
        bodies = [response.json() for _, response in self.answers if response.is_success]
        return {body.get("executionId") or body["id"] for body in bodies}

    def recovered_at(self, started: float) -> float | None:
        """When the first success after the last failure was received; None before `ENOUGH` successes in a row."""
        row = self.answers[-ENOUGH:]
        if len(row) < ENOUGH or row[0].at < started or not all(answer.response.is_success for answer in row):
            return None
        failed = [answer.at for answer in self.answers if not answer.response.is_success]
        return min(answer.at for answer in self.answers if answer.at > max(failed, default=started))


@pytest.mark.parametrize("stop", [PostgresServer.stop_immediately, PostgresServer.shut_down])
async def test_requests_get_503_and_succeed_soon_after_the_start(
    tmp_path: Path, stop: Callable[[PostgresServer], None]
) -> None:
    with private_workspace("postgresql") as workspace:
        assert workspace.server is not None
        port = free_port()
        process = Process(Settings(database_url=workspace.database_url), tmp_path, "serve", "--port", str(port))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                await wait_until_ready(client)
                flow = await running_flow(client)
                senders = await senders_of(client, flow)
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(sender.run()) for sender in senders.values()]
                    seconds = await restart(workspace.server, stop, senders)
                    for task in tasks:
                        task.cancel()
                for sender in senders.values():
                    assert_refused_with_a_problem(sender)
                for execution in senders["run"].created() | senders["webhook"].created():
                    assert (await eventually(client, f"{flow}/executions/{execution}", ENDED))["status"] == "success"
        finally:
            process.kill()
    print(f"\n{stop.__name__}: seconds from the start of the server until success: {seconds}")  # noqa: T201
    assert max(seconds.values()) <= RECOVERY_SECONDS


async def senders_of(client: httpx.AsyncClient, flow: str) -> dict[str, Sender]:
    body = {"type": "webhook", "name": "w", "config": {}}
    webhook = f"/webhooks/{(await client.post(f'{flow}/triggers', json=body)).json()['webhookToken']}"
    return {
        "read": Sender(lambda: client.get(flow)),
        "list": Sender(lambda: client.get(f"{API}/executions")),
        "write": Sender(lambda: client.patch(flow, json={"description": "d"})),
        "run": Sender(lambda: client.post(f"{flow}/executions/run")),
        "webhook": Sender(lambda: client.post(webhook, content=b"x")),
        "waiting webhook": Sender(lambda: client.post(f"{webhook}?wait=0.1", content=b"x")),
    }


async def restart(
    server: PostgresServer, stop: Callable[[PostgresServer], None], senders: dict[str, Sender]
) -> dict[str, float]:
    """Return the seconds from the start of the server until each kind of request succeeds again."""

    async def accepted() -> bool:
        return all(len(sender.answers) >= ENOUGH for sender in senders.values())

    async def refused() -> bool:
        return all(len(sender.refused()) >= ENOUGH for sender in senders.values())

    async def recovered() -> bool:
        return all(sender.recovered_at(started) for sender in senders.values())

    await wait_until("requests to succeed", accepted, 30)
    assert [sender.refused() for sender in senders.values()] == [[]] * len(senders)
    await asyncio.to_thread(stop, server)
    await wait_until("requests to be refused", refused, 120)
    await asyncio.to_thread(server.start)
    started = time.monotonic()
    await wait_until("requests to succeed again", recovered, 60)
    return {name: round(max(0, (sender.recovered_at(started) or 0) - started), 2) for name, sender in senders.items()}


def assert_refused_with_a_problem(sender: Sender) -> None:
    for response in sender.refused():
        assert response.status_code == 503, response.text
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.json()["code"] == "database_unavailable"
        assert int(response.headers["Retry-After"]) >= 1
