"""Webhooks on the application's own database. Their route answers as the documented route does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from starlette.routing import NoMatchFound

from bloxserver.api.main import app
from bloxserver.api.webhook_route import WebhookRoute
from bloxserver.models import database as models_database
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, FlowStatus, UsageRecord
from bloxserver.settings import get_settings
from tests.conftest import api_client
from tests.database_override import override_database
from tests.factories import create_flow, create_trigger, create_user
from tests.statements import count_statements

REQUESTS: dict[str, dict[str, Any]] = {
    "no body": {},
    "JSON": {"json": {"a": 1}},
    "text": {"content": "é", "headers": {"Content-Type": "text/plain"}},
    "bytes": {"content": b"\xff\0", "headers": {"Content-Type": "image/png; a=b"}},
    "NUL": {"content": "a\0b"},
    "query": {"params": {"source": "é", "other": "1"}},
    "depth": {"headers": {"BloxServer-Depth": "3"}},
    "malformed depth": {"headers": {"BloxServer-Depth": "-3"}},
    "depth over the limit": {"headers": {"BloxServer-Depth": "999"}},
    "large body": {"content": b"x" * 100_000},
    "too large body": {"content": b"x" * 2_000_000},
    "empty idempotency key": {"headers": {"Idempotency-Key": " "}},
    "invalid wait": {"params": {"wait": "x"}},
    "encoded name of an invalid wait": {"url": "?%77ait=x"},
}
TOKENS = ["running", "stopped", "disabled", "signed", "unknown", "a%00b", "%F0%9F%98%80", "x" * 300]


@pytest.fixture
async def webhook_database(live_database: Database) -> Database:
    """A database with a webhook for each of the first tokens."""
    async with live_database.transaction() as session:
        user = await create_user(session, tier="pro")
        running = await create_flow(session, user, status=FlowStatus.RUNNING)
        stopped = await create_flow(session, user, status=FlowStatus.STOPPED)
        await create_trigger(session, running, webhook_token="running")
        await create_trigger(session, running, webhook_token="disabled", enabled=False)
        await create_trigger(session, stopped, webhook_token="stopped")
        config = {"signature": {"scheme": "bearer"}}
        await create_trigger(session, running, webhook_token="signed", config=config)
    return live_database


@pytest.fixture
async def own_client(webhook_database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """The API on its own database: `get_db` is not overridden."""
    monkeypatch.setattr(models_database, "database", webhook_database)
    async with api_client() as client:
        yield client


async def executions_of(database: Database) -> dict[UUID, tuple[object, ...]]:
    """The stored values of executions that differ between requests, by their ids."""
    row = ExecutionRecord
    columns = row.flow_id, row.trigger_type, row.status, row.input_payload, row.input_encoding, row.target, row.depth
    async with database.transaction(read_only=True) as session:
        found = await session.execute(sa.select(row.id, *columns, row.flow_version, row.trigger_id))
        return {each[0]: tuple(each[1:]) for each in found}


async def answer_of(client: httpx.AsyncClient, database: Database, token: str, request: dict[str, Any]) -> object:
    """The response without what differs between equal requests, and the stored execution."""
    url = f"/webhooks/{token}" + request.get("url", "")
    response = await client.post(url, **{name: value for name, value in request.items() if name != "url"})
    body = response.json()
    body.pop("requestId", None)
    execution_id = body.pop("executionId", None)
    stored = None if execution_id is None else (await executions_of(database))[UUID(execution_id)]
    headers = {
        name: value for name, value in response.headers.items() if name not in ("x-request-id", "content-length")
    }
    return response.status_code, headers, body, stored


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_routes_answer_alike(own_client: httpx.AsyncClient, webhook_database: Database, name: str) -> None:
    for token in TOKENS if name == "JSON" else TOKENS[:1]:
        answer = await answer_of(own_client, webhook_database, token, REQUESTS[name])
        with override_database(app, webhook_database):
            assert answer == await answer_of(own_client, webhook_database, token, REQUESTS[name]), token


async def test_webhooks_at_the_same_time_share_a_transaction(
    own_client: httpx.AsyncClient, webhook_database: Database
) -> None:
    await own_client.post("/webhooks/running")
    with count_statements(webhook_database.engine) as statements:
        tokens = ["running", "stopped", "running", "running"]
        responses = await asyncio.gather(*(own_client.post(f"/webhooks/{token}") for token in tokens))
    assert [response.status_code for response in responses] == [200, 400, 200, 200]
    recorded = 2  # the rejection is inserted, and the oldest ones are deleted
    assert len(statements) == recorded + (3 if webhook_database.is_sqlite else 2)
    async with webhook_database.transaction(read_only=True) as session:
        assert await session.scalar(sa.select(sa.func.sum(UsageRecord.workflow_runs))) == 4
    assert len(await executions_of(webhook_database)) == 4


async def test_request_that_waits_uses_the_documented_route(
    own_client: httpx.AsyncClient, webhook_database: Database
) -> None:
    response = await own_client.post("/webhooks/running", params={"wait": "0.01"})
    assert (response.status_code, response.json()["status"]) == (202, "running")


async def test_other_methods_are_refused(own_client: httpx.AsyncClient) -> None:
    assert (await own_client.get("/webhooks/running")).status_code == 405
    assert (await own_client.options("/webhooks/running")).headers["Allow"] == "OPTIONS, POST"


async def test_database_that_cannot_be_reached_is_503(
    own_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql+asyncpg://user@127.0.0.1:1/database"
    unreachable = Database(get_settings().model_copy(update={"database_url": url}))
    monkeypatch.setattr(models_database, "database", unreachable)
    response = await own_client.post("/webhooks/running")
    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
    assert "Retry-After" in response.headers


def test_route_has_no_name() -> None:
    with pytest.raises(NoMatchFound):
        app.url_path_for("no such route")
    assert app.url_path_for("receive", webhook_token="a") == "/webhooks/a"
    assert WebhookRoute.path == "/webhooks/{webhook_token}"
