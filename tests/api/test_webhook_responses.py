"""Webhooks whose triggers have `respond`: responses with the output of the execution, or of a listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from bloxserver.api.main import app
from bloxserver.api.webhook_responses import ACCEPTED, UNTRUSTED
from bloxserver.engine.engine import Engine
from bloxserver.models import database as models_database
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord, UserRecord
from bloxserver.plans import get_plan
from bloxserver.settings import Settings
from tests import factories
from tests.api.contract import API, assert_invalid, covers, path_of
from tests.api.test_wait import accepted, end, waiting
from tests.conftest import api_client
from tests.database_override import override_database
from tests.engine.running_engine import started_flow
from tests.server import run_server
from tests.single_connection import single_connection

RESPONDING = """
organism: {name: responding}
listeners:
  - {name: read, description: Reads, handler: echo, peers: [reply, work]}
  - {name: reply, description: Responds, handler: respond, config: %s}
  - {name: work, description: Works, handler: %s}
"""
SLOW = "delay, config: {seconds: 3600}"
ECHO = "organism: {name: o}\nlisteners:\n- {name: a, description: d, handler: echo}\n"
STOP = ECHO.replace("echo", "stop, config: {error: 'no {{ payload.n }}'}")
END, LISTENER = {"respond": "end", "respond_seconds": 30}, {"respond": "listener", "respond_seconds": 30}


@pytest.fixture(params=["fast", "documented"])
async def caller(
    live_database: Database, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """The API with its own database, whose webhooks have a route of their own, and with an overridden one."""
    with ExitStack() as stack:
        if request.param == "documented":
            stack.enter_context(override_database(app, live_database))
        else:
            monkeypatch.setattr(models_database, "database", live_database)
        async with api_client() as client:
            yield client


async def webhook(client: httpx.AsyncClient, organism: str, config: dict[str, Any]) -> tuple[str, str]:
    """The path of a running flow, and the URL of its webhook."""
    path = await started_flow(client, organism)
    body = {"type": "webhook", "name": "A webhook", "config": config}
    created = await client.post(f"{path}/triggers", json=body)
    assert created.status_code == 201, created.text
    return path, f"/webhooks/{created.json()['webhookToken']}"


def assert_accepted(response: httpx.Response) -> UUID:
    body = response.json()
    execution_id = UUID(body["executionId"])
    text = f'{{"status":"accepted","executionId":"{execution_id}","message":"{ACCEPTED}"}}'
    assert (response.status_code, response.text) == (200, text)
    return execution_id


@covers("webhooks.respond.end")
async def test_end_responds_with_the_output(caller: httpx.AsyncClient, engine: Engine) -> None:
    _, url = await webhook(caller, ECHO, END)
    response = await caller.post(url, json={"n": 7, "é": [None, 1.5]})
    assert (response.status_code, response.json()) == (200, {"n": 7, "é": [None, 1.5]})
    assert response.headers["content-type"] == "application/json"
    assert {name: response.headers[name] for name in UNTRUSTED} == UNTRUSTED
    large = await caller.post(url, json={"text": "é" * 100_000})
    assert large.json() == {"text": "é" * 100_000}


@covers("webhooks.respond.failed")
async def test_end_responds_with_the_error(caller: httpx.AsyncClient, engine: Engine) -> None:
    path, url = await webhook(caller, STOP, END)
    response = await caller.post(url, json={"n": 7})
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    body = response.json()
    assert (body["code"], body["message"]) == ("execution_failed", "The execution has failed: a: no 7")
    (item,) = (await caller.get(f"{path}/executions")).json()["items"]
    assert body["details"] == {"executionId": item["id"]}


@covers("webhooks.respond.listener")
async def test_listener_responds_while_the_flow_continues(caller: httpx.AsyncClient, engine: Engine) -> None:
    config = (
        "{status: 201, headers: {X-Order: 'o{{ payload.n }}', Content-Type: text/html}, body: '<b>{{ payload.n }}</b>'}"
    )
    path, url = await webhook(caller, RESPONDING % (config, SLOW), LISTENER)
    response = await caller.post(url, json={"n": 7})
    assert (response.status_code, response.text, response.headers["x-order"]) == (201, "<b>7</b>", "o7")
    assert response.headers["content-type"] == "text/html"
    assert {name: response.headers[name] for name in UNTRUSTED} == UNTRUSTED
    (item,) = (await caller.get(f"{path}/executions")).json()["items"]
    assert item["status"] == "running"


@pytest.mark.parametrize(
    ("config", "status", "headers", "body"),
    [
        ("{}", 200, {"content-type": "application/json"}, '{"n":7}'),
        ("{body: [1, '{{ payload.n }}']}", 200, {"content-type": "application/json"}, "[1,7]"),
        ("{status: 204}", 204, {}, ""),
        ("{status: '{{ payload.n + 400 }}', body: no}", 407, {"content-type": "text/plain; charset=utf-8"}, "no"),
        ("{redirect: 'https://example.com/{{ payload.n }}'}", 303, {"location": "https://example.com/7"}, ""),
        ("{body: '{{ payload.n }}é'}", 200, {"content-type": "text/plain; charset=utf-8"}, "7é"),
    ],
    ids=range(6),
)
async def test_kinds_of_responses(
    live_client: httpx.AsyncClient, engine: Engine, config: str, status: int, headers: dict[str, str], body: str
) -> None:
    _, url = await webhook(live_client, RESPONDING % (config, "echo"), LISTENER)
    response = await live_client.post(url, json={"n": 7})
    assert (response.status_code, response.text) == (status, body)
    assert {name: response.headers[name] for name in headers} == headers


async def test_listener_without_a_response_is_answered_at_the_end(caller: httpx.AsyncClient, engine: Engine) -> None:
    path, url = await webhook(caller, ECHO, LISTENER)
    execution_id = assert_accepted(await caller.post(url, json={"n": 7}))
    assert (await caller.get(f"{path}/executions/{execution_id}")).json()["status"] == "success"
    invalid = "{redirect: '{{ payload.url }}'}"
    _, url = await webhook(caller, RESPONDING % (invalid, SLOW), LISTENER)
    response = await caller.post(url, json={"url": "javascript:alert(1)"})
    message = "The execution has failed: reply: redirect must be an http or https URL"
    assert (response.status_code, response.json()["message"]) == (422, message)


@pytest.mark.parametrize("until", ["end", "listener"])
async def test_repeated_request_gets_the_same_response(caller: httpx.AsyncClient, engine: Engine, until: str) -> None:
    _, url = await webhook(caller, RESPONDING % ("{status: 202, body: hello}", "echo"), LISTENER | {"respond": until})
    first, second = [await caller.post(url, content=b"1", headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert first.status_code == (200 if until == "end" else 202)
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"


@pytest.fixture
async def flow(live_database: Database, caller: httpx.AsyncClient) -> FlowRecord:
    """A running flow, which no engine runs, with a webhook for each way to respond."""
    await caller.get(f"{API}/me")
    async with live_database.sessions() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
        flow = await factories.create_flow(session, user)
        for token, config in {
            "end": END,
            "listener": LISTENER,
            "short": {"respond": "end", "respond_seconds": 0.01},
            "unknown": {"respond": "later"},
            "invalid": {"respond": "end", "respond_seconds": "5"},
            "immediately": {"respond": "immediately"},
            "none": {},
        }.items():
            await factories.create_trigger(session, flow, webhook_token=token, config=config)
        return flow


@covers("webhooks.respond", "webhooks.respond.deadline")
@pytest.mark.parametrize("token", ["short", "unknown", "invalid", "immediately", "none"])
async def test_accepted_webhook_is_answered_without_an_engine(
    caller: httpx.AsyncClient, flow: FlowRecord, token: str
) -> None:
    async with asyncio.timeout(10):
        assert_accepted(await caller.post(f"/webhooks/{token}"))


@covers("webhooks.respond.failed")
@pytest.mark.parametrize("status", [ExecutionStatus.CANCELLED, ExecutionStatus.TIMEOUT])
@pytest.mark.parametrize("token", ["end", "listener"])
async def test_execution_that_ends_otherwise_is_an_error(
    caller: httpx.AsyncClient, live_database: Database, flow: FlowRecord, token: str, status: ExecutionStatus
) -> None:
    task = waiting(caller, f"/webhooks/{token}")
    (execution_id,) = await accepted(live_database)
    await end(live_database, execution_id, status)
    code = "execution_cancelled" if status is ExecutionStatus.CANCELLED else "execution_timed_out"
    response = await task
    assert (response.status_code, response.json()["code"]) == (422, code)


async def test_wait_takes_precedence(caller: httpx.AsyncClient, live_database: Database, flow: FlowRecord) -> None:
    response = await caller.post("/webhooks/end", params={"wait": "0.01"})
    assert (response.status_code, response.json()["status"]) == (202, "running")


@contextmanager
def full_slots(user: UserRecord) -> Iterator[None]:
    """All streams of a user are open."""
    plan = get_plan(user.tier)
    with ExitStack() as stack:
        for _ in range(plan.streams):
            stack.enter_context(app.state.stream_slots.take(user.id, plan))
        yield


async def test_request_over_the_limit_of_streams_does_not_wait(
    caller: httpx.AsyncClient, live_database: Database, flow: FlowRecord
) -> None:
    async with live_database.sessions() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
    with full_slots(user):
        async with asyncio.timeout(10):
            assert_accepted(await caller.post("/webhooks/end"))


async def test_deleted_execution_ends_the_wait(
    caller: httpx.AsyncClient, live_database: Database, flow: FlowRecord
) -> None:
    task = waiting(caller, "/webhooks/end")
    await accepted(live_database)
    assert (await caller.delete(path_of(flow))).status_code == 204
    async with asyncio.timeout(10):
        assert_accepted(await task)


async def test_waiting_requests_hold_no_connection(
    live_settings: Settings, caller: httpx.AsyncClient, flow: FlowRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with single_connection(live_settings) as database:
        monkeypatch.setattr(models_database, "database", database)
        tasks = [waiting(caller, "/webhooks/end") for _ in range(5)]
        tasks += [waiting(caller, "/webhooks/listener") for _ in range(4)]
        for execution_id in await accepted(database, 9):
            await end(database, execution_id)
        answers = [await task for task in tasks]
    assert [answer.json() for answer in answers[:5]] == [1] * 5
    assert {answer.json()["status"] for answer in answers[5:]} == {"accepted"}


async def test_disconnected_client_loses_nothing(
    live_database: Database, caller: httpx.AsyncClient, flow: FlowRecord
) -> None:
    with capture_logs() as logs:
        async with run_server() as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            task = waiting(client, "/webhooks/end")
            (execution_id,) = await accepted(live_database)
            task.cancel()
            async with asyncio.timeout(10):
                while True:
                    if any(line.get("route") == "/webhooks/{webhook_token}" for line in logs):
                        break
                    await asyncio.sleep(0.01)
    async with live_database.transaction(read_only=True) as session:
        execution = await session.get_one(ExecutionRecord, execution_id)
    assert execution.status is ExecutionStatus.RUNNING


async def test_shutdown_ends_the_wait(live_database: Database, caller: httpx.AsyncClient, flow: FlowRecord) -> None:
    async with httpx.AsyncClient() as client:
        async with asyncio.timeout(20), run_server() as port:
            task = waiting(client, f"http://127.0.0.1:{port}/webhooks/end")
            await accepted(live_database)
        assert_accepted(await task)


@covers("webhooks.respond.deadline")
@pytest.mark.parametrize(
    ("config", "member"),
    [
        ({"respond": "later"}, "respond"),
        ({"respond": None}, "respond"),
        ({"respond": ["end"]}, "respond"),
        ({"respond": "end", "respond_seconds": 0}, "respond_seconds"),
        ({"respond": "end", "respond_seconds": 60.5}, "respond_seconds"),
        ({"respond": "end", "respond_seconds": "10"}, "respond_seconds"),
        ({"respond": "end", "respond_seconds": True}, "respond_seconds"),
    ],
)
async def test_invalid_config_is_rejected(live_client: httpx.AsyncClient, config: dict[str, Any], member: str) -> None:
    created = await live_client.post(f"{API}/flows", json={"name": "A flow"})
    path = f"{API}/flows/{created.json()['id']}/triggers"
    body = {"type": "webhook", "name": "A webhook", "config": config}
    assert_invalid(await live_client.post(path, json=body), f"body.config.{member}")
    trigger = (await live_client.post(path, json=body | {"config": END})).json()
    assert_invalid(await live_client.patch(f"{path}/{trigger['id']}", json={"config": config}), f"body.config.{member}")


async def test_other_triggers_may_have_these_members(live_client: httpx.AsyncClient) -> None:
    created = await live_client.post(f"{API}/flows", json={"name": "A flow"})
    body = {"type": "schedule", "name": "Daily", "config": {"cron": "0 9 * * *", "respond": "later"}}
    response = await live_client.post(f"{API}/flows/{created.json()['id']}/triggers", json=body)
    assert response.status_code == 201
