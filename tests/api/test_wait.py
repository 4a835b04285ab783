"""`?wait`: runs and webhooks that respond when the execution has ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from structlog.testing import capture_logs

from bloxserver.api.main import app
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database, get_db
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord, TriggerType, UserRecord
from bloxserver.services.transitions import end_execution
from bloxserver.settings import Settings
from tests import factories
from tests.api.contract import API, assert_invalid, assert_problem, covers, path_of, running_flow
from tests.server import run_server
from tests.single_connection import single_connection

ENDS = [status for status in ExecutionStatus if status is not ExecutionStatus.RUNNING]


@pytest.fixture
async def flow(live_client: httpx.AsyncClient, live_database: Database) -> FlowRecord:
    """A running flow with a webhook, in a database that accepts several connections."""
    await live_client.get(f"{API}/me")
    async with live_database.sessions() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
        flow = await factories.create_flow(session, user)
        await factories.create_trigger(session, flow, webhook_token="the-token")
        return flow


async def accepted(database: Database, count: int = 1) -> list[UUID]:
    """The ids of all executions once there are `count`."""
    async with asyncio.timeout(10):
        while True:
            async with database.transaction(read_only=True) as session:
                ids = list(await session.scalars(sa.select(ExecutionRecord.id)))
            if len(ids) == count:
                return ids
            await asyncio.sleep(0.01)


async def end(database: Database, execution_id: UUID, status: ExecutionStatus = ExecutionStatus.SUCCESS) -> None:
    async with database.transaction() as session:
        assert await end_execution(session, execution_id, status, parent_id=None, output="1", error="why")


def waiting(client: httpx.AsyncClient, path: str, **options: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post(path, **options))


@covers("wait.ended")
@pytest.mark.parametrize("status", ENDS)
async def test_run_responds_with_the_ended_execution(
    live_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord, status: ExecutionStatus
) -> None:
    path = f"{path_of(flow)}/executions"
    task = waiting(live_client, f"{path}/run", params={"wait": "30"}, json={"inputPayload": "in"})
    (execution_id,) = await accepted(live_database)
    await end(live_database, execution_id, status)
    response = await task
    body = response.json()
    assert (response.status_code, body["status"], body["inputPayload"]) == (201, status.value, "in")
    assert (body["outputPayload"], body["errorMessage"]) == ("1", "why")
    assert (await live_client.get(f"{path}/{execution_id}")).json() == body


@covers("wait.ended")
async def test_webhook_responds_with_the_ended_execution(
    live_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord
) -> None:
    task = waiting(live_client, "/webhooks/the-token", params={"wait": 0.5e1}, content=b"in")
    (execution_id,) = await accepted(live_database)
    await end(live_database, execution_id, ExecutionStatus.ERROR)
    response = await task
    body = response.json()
    assert response.status_code == 200
    assert (body.pop("executionId"), body.pop("message")) == (str(execution_id), "Execution has ended")
    assert (body["status"], body["inputPayload"], body["errorMessage"]) == ("error", "in", "why")
    assert (await live_client.get(f"{path_of(flow)}/executions/{execution_id}")).json() == body


@covers("wait.deadline")
async def test_elapsed_wait_responds_with_the_running_execution(
    live_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord
) -> None:
    for path in (f"{path_of(flow)}/executions/run", "/webhooks/the-token"):
        started = asyncio.get_running_loop().time()
        response = await live_client.post(path, params={"wait": "0.3"})
        assert 0.3 <= asyncio.get_running_loop().time() - started < 3
        body = response.json()
        assert (response.status_code, body["status"], body["message"]) == (202, "running", "Execution is still running")
        location = f"{path_of(flow)}/executions/{body['executionId']}"
        assert response.headers.get("Location") == (location if path.endswith("/run") else None)
        shown = (await live_client.get(location)).json()
        assert {name: body[name] for name in shown} == shown


@covers("wait.bounds")
@pytest.mark.parametrize("seconds", ["0", "-1", "60.1", "nan", "inf", "x", ""])
async def test_invalid_wait_is_rejected_and_starts_nothing(
    live_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord, seconds: str
) -> None:
    for path in (f"{path_of(flow)}/executions/run", "/webhooks/the-token"):
        assert_invalid(await live_client.post(path, params={"wait": seconds}), "query.wait")
    assert await accepted(live_database, 0) == []


async def test_rejected_requests_do_not_wait(live_client: httpx.AsyncClient, flow: FlowRecord) -> None:
    await live_client.post(f"{path_of(flow)}/stop")
    async with asyncio.timeout(10):
        for path in (f"{path_of(flow)}/executions/run", "/webhooks/the-token"):
            refused = await live_client.post(path, params={"wait": "60"})
            assert (refused.status_code, refused.json()["code"]) == (400, "flow_not_running")


@covers("wait.no-connection")
async def test_waiting_requests_hold_no_connection(
    live_client: httpx.AsyncClient, live_settings: Settings, flow: FlowRecord
) -> None:
    async with single_connection(live_settings) as database:
        path = f"{path_of(flow)}/executions"
        tasks = [waiting(live_client, f"{path}/run", params={"wait": "60"}) for _ in range(10)]
        tasks += [waiting(live_client, "/webhooks/the-token", params={"wait": "60"}) for _ in range(10)]
        ids = await accepted(database, 20)
        assert (await live_client.get(path)).json()["total"] == 20
        for execution_id in ids:
            await end(database, execution_id)
        answers = [(await task).json() for task in tasks]
        assert {answer["status"] for answer in answers} == {"success"}
        assert {answer["id"] for answer in answers} == {str(execution_id) for execution_id in ids}


async def test_deleted_execution_is_not_found(
    live_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord
) -> None:
    task = waiting(live_client, f"{path_of(flow)}/executions/run", params={"wait": "60"})
    await accepted(live_database)
    assert (await live_client.delete(path_of(flow))).status_code == 204
    assert_problem(await task, 404, "execution_not_found", "Execution not found")


async def test_disconnected_client_ends_polling(live_database: Database, flow: FlowRecord) -> None:
    with capture_logs() as logs:
        async with run_server() as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            task = waiting(client, "/webhooks/the-token", params={"wait": "60"})
            await accepted(live_database)
            task.cancel()
            async with asyncio.timeout(5):
                while True:
                    if any(line.get("route") == "/webhooks/{webhook_token}" for line in logs):
                        break
                    await asyncio.sleep(0.01)


async def test_shutdown_ends_the_wait(live_database: Database, flow: FlowRecord) -> None:
    async with httpx.AsyncClient() as client:
        async with asyncio.timeout(10), run_server() as port:
            task = waiting(client, f"http://127.0.0.1:{port}/webhooks/the-token", params={"wait": "60"})
            await accepted(live_database)
        assert (await task).status_code == 202


async def test_failed_commit_is_an_error_at_once(
    client: httpx.AsyncClient,
    dev_user: UserRecord,
    session: AsyncSession,
    sessions: async_sessionmaker[AsyncSession],
) -> None:
    async def failing() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session
            await session.rollback()
            raise OSError("gone")

    flow = await factories.create_flow(session, dev_user)
    app.dependency_overrides[get_db] = failing
    async with asyncio.timeout(10):
        response = await client.post(f"{path_of(flow)}/executions/run", params={"wait": "60"})
    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")


async def test_accepted_execution_gets_202_if_the_database_becomes_unavailable(
    client: httpx.AsyncClient,
    dev_user: UserRecord,
    session: AsyncSession,
    sessions: async_sessionmaker[AsyncSession],
) -> None:
    calls = 0

    async def once() -> AsyncIterator[AsyncSession]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError("gone")
        async with sessions() as session:
            yield session
            await session.commit()

    flow = await factories.create_flow(session, dev_user)
    app.dependency_overrides[get_db] = once
    response = await client.post(f"{path_of(flow)}/executions/run", params={"wait": "0.2"})
    assert (response.status_code, response.json()["status"]) == (202, "running")
    assert calls > 2


@pytest.mark.parametrize("kind", ["generator", "function", "coroutine"])
async def test_get_db_may_be_overridden_by_any_callable(
    client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession, kind: str
) -> None:
    """Third-party tests override `get_db` with any callable; here with one session for all requests."""

    def generator() -> Any:
        yield session

    async def coroutine() -> AsyncSession:
        return session

    overrides = {"generator": generator, "function": lambda: session, "coroutine": coroutine}
    app.dependency_overrides[get_db] = overrides[kind]
    flow = await factories.create_flow(session, dev_user)
    response = await client.post(f"{path_of(flow)}/executions/run", params={"wait": "0.1"})
    assert response.status_code == 202
    execution = await session.get_one(ExecutionRecord, UUID(response.json()["id"]))
    await end_execution(session, execution.id, ExecutionStatus.SUCCESS, parent_id=None)
    await session.commit()
    events = await client.get(f"{path_of(flow)}/executions/{execution.id}/events")
    assert "id: end" in events.text


@covers("webhooks.depth")
async def test_webhook_depth_is_read_from_its_header(
    client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
) -> None:
    flow = await factories.create_flow(session, dev_user)
    await factories.create_trigger(session, flow, webhook_token="the-token")
    depths = {"0": 0, "3": 3, "8": 8, "": 0, "x": 0, "-1": 0, "1.5": 0, "9" * 30: 0}
    for text, depth in depths.items():
        response = await client.post("/webhooks/the-token", headers={"BloxServer-Depth": text})
        execution = await session.get_one(ExecutionRecord, UUID(response.json()["executionId"]))
        assert (execution.depth, execution.trigger_type) == (depth, TriggerType.WEBHOOK), text
    for text in ("9", "1000", "1001", "999999999"):
        refused = await client.post("/webhooks/the-token", headers={"BloxServer-Depth": text})
        assert (refused.status_code, refused.json()["code"]) == (400, "call_depth_exceeded")
    assert await session.scalar(sa.select(sa.func.count()).select_from(ExecutionRecord)) == len(depths)


async def test_response_is_sent_when_the_engine_ends_the_execution(
    live_client: httpx.AsyncClient, engine: Engine
) -> None:
    path = await running_flow(live_client)
    async with asyncio.timeout(20):
        response = await live_client.post(
            f"{path}/executions/run", params={"wait": "60"}, json={"inputPayload": {"name": "Ada"}}
        )
    body = response.json()
    assert (response.status_code, body["status"]) == (201, "success")
    assert json.loads(body["outputPayload"]) == {"message": "Hello, Ada!"}
