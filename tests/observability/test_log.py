"""Logs identify a request, and never contain a token, a key or a payload."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import structlog

from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.tables import FlowRecord, TriggerRecord, TriggerType, UserRecord
from bloxserver.observability.log import configure_logging
from tests.clerk import clerk_authentication
from tests.server import connection, head, run_server

CANARY = "canary7f3a9e51"
FAILING = f"""
organism: {{name: failing}}
listeners:
  - name: ask
    description: Fails
    handler: http.request
    config: {{method: GET, url: "http://localhost:9/{CANARY}?{{{{ payload.secret }}}}"}}
"""
REFUSED = f"""
organism: {{name: {CANARY}}}
listeners:
  - name: x
    description: {CANARY}
    handler: {CANARY}
"""
Logs = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Logs]:
    """Return all lines logged since the last call, after checking that they do not contain the canary."""
    root = logging.getLogger()
    level, configuration = root.level, structlog.get_config()
    stream = io.StringIO()

    def read() -> list[dict[str, Any]]:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        assert CANARY not in text
        return [json.loads(line) for line in text.splitlines()]

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure_logging(level="DEBUG", as_json=True)
    (handler,) = root.handlers
    yield read
    root.removeHandler(handler)
    root.setLevel(level)
    structlog.configure(**configuration)


def requests_of(lines: list[dict[str, Any]]) -> list[tuple[str, str | None, int]]:
    return [(line["method"], line["route"], line["status"]) for line in lines if line["event"] == "request"]


async def test_request_is_logged_once_without_its_path(live_client: httpx.AsyncClient, logs: Logs) -> None:
    response = await live_client.get(f"/webhooks/{CANARY}/test?a={CANARY}", headers={"Cookie": CANARY})
    (line,) = logs()
    assert line.pop("duration_ms") >= 0
    assert line.pop("timestamp")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "bloxserver.request",
        "method": "GET",
        "route": "/webhooks/{webhook_token}/test",
        "status": 404,
        "client": "127.0.0.1",
        "request_id": response.headers["X-Request-Id"],
    }


async def test_secrets_are_not_logged_for_any_status(
    live_client: httpx.AsyncClient, live_database: Database, logs: Logs
) -> None:
    """Requests that are accepted, rejected, malformed, unauthorized, too large, or fail with a bug."""
    flow = (await live_client.post("/api/v1/flows", json={"name": CANARY, "organismYaml": CANARY})).json()
    path = f"/api/v1/flows/{flow['id']}"
    async with live_database.transaction() as session:
        await session.execute(sa.update(FlowRecord).values(status="running"))
        session.add(
            TriggerRecord(
                flow_id=sa.select(FlowRecord.id).scalar_subquery(),
                type=TriggerType.WEBHOOK,
                name="T",
                webhook_token=CANARY,
            )
        )
    sent: list[tuple[str, str, dict[str, Any], int]] = [
        ("POST", f"/webhooks/{CANARY}", {"content": CANARY}, 200),
        ("GET", f"/webhooks/{CANARY}/test", {}, 200),
        ("POST", f"/webhooks/{CANARY}x", {"content": CANARY}, 404),
        ("POST", f"/webhooks/{CANARY}", {"content": CANARY.encode() * 100_000}, 413),
        ("PATCH", path, {"json": {"description": CANARY, "canvasState": {"nodes": [CANARY]}}}, 422),
        ("POST", f"{path}/executions/run", {"params": {"input_payload": CANARY}}, 201),
        ("POST", f"{path}/executions/run", {"json": {"inputPayload": {CANARY: [CANARY]}}}, 201),
        ("POST", f"{path}/executions/run", {"content": f'{{"{CANARY}":'}, 422),
        ("POST", f"{path}/triggers", {"json": {"type": "schedule", "name": "T", "config": {"cron": CANARY}}}, 422),
        ("GET", f"/api/v1/flows/{CANARY}", {}, 422),
        ("GET", f"/{CANARY}", {}, 404),
        ("GET", "/health", {"headers": {"X-Request-Id": f"<{CANARY}>"}}, 200),
    ]
    for method, address, options, status in sent:
        response = await live_client.request(method, address, **options)
        assert response.status_code == status, address
    lines = logs()
    assert [status for _, _, status in requests_of(lines)] == [201, *(status for *_, status in sent)]
    assert {line["level"] for line in lines} == {"info"}

    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE triggers RENAME TO hidden"))
    response = await live_client.post(f"/webhooks/{CANARY}", content=CANARY)
    assert (response.status_code, response.json()["detail"]) == (500, "Internal server error")
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE hidden RENAME TO triggers"))
    lines = logs()
    error = next(line for line in lines if line["level"] == "error")
    assert error["request_id"] == response.json()["requestId"]
    assert "triggers" in error["exception"], "the traceback tells the statement, not its values"


async def test_token_is_not_logged(live_client: httpx.AsyncClient, live_database: Database, logs: Logs) -> None:
    async with clerk_authentication() as clerk:
        good = clerk.headers(f"user_{CANARY}", email=f"{CANARY}@example.com")["Authorization"]
        expired = clerk.headers(f"user_{CANARY}", now=1_000_000_000)["Authorization"]
        forged = f"{good[:-8]}AAAAAAAA"
        for header, status in ((good, 200), (expired, 401), (forged, 401), (f"Bearer {CANARY}", 401), (CANARY, 401)):
            response = await live_client.get("/api/v1/me", headers={"Authorization": header})
            assert response.status_code == status
    lines = logs()
    assert requests_of(lines) == [("GET", "/api/v1/me", 200), *[("GET", "/api/v1/me", 401)] * 4]
    text = json.dumps(lines)
    assert not any(part in text for token in (good, expired) for part in token.removeprefix("Bearer ").split("."))
    async with live_database.transaction() as session:
        assert await session.scalar(sa.select(UserRecord.clerk_id)) == f"user_{CANARY}"


async def test_engine_does_not_log_payloads(live_client: httpx.AsyncClient, engine: Engine, logs: Logs) -> None:
    """A block that fails with a secret URL and input, and an invalid organism."""

    async def settled(path: str, wanted: set[str]) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                body: dict[str, Any] = (await live_client.get(path)).json()
                if body["status"] in wanted:
                    return body
                await asyncio.sleep(0.02)

    for organism, wanted in ((FAILING, "running"), (REFUSED, "error")):
        flow = (await live_client.post("/api/v1/flows", json={"name": CANARY, "organismYaml": organism})).json()
        path = f"/api/v1/flows/{flow['id']}"
        await live_client.post(f"{path}/start")
        assert (await settled(path, {"running", "error"}))["status"] == wanted
        if wanted == "running":
            run = await live_client.post(f"{path}/executions/run", json={"inputPayload": {"secret": CANARY, "last": 1}})
            ended = await settled(f"{path}/executions/{run.json()['id']}", {"success", "error", "timeout"})
            assert ended["status"] == "error"
            assert ended["errorMessage"]
    events = [line["event"] for line in logs()]
    assert {"flow started", "flow not started", "request"} <= set(events)


async def test_server_does_not_log_urls(live_client: httpx.AsyncClient, logs: Logs) -> None:
    async with run_server() as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get(f"/webhooks/{CANARY}/test?key={CANARY}")).status_code == 404
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /{CANARY} {CANARY}\r\n{CANARY}\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400")
        writer.close()
    lines = logs()
    assert requests_of(lines) == [("GET", "/webhooks/{webhook_token}/test", 404)]
    assert {line["logger"].split(".")[0] for line in lines} == {"bloxserver", "uvicorn"}


@pytest.mark.parametrize("path", [f"/webhooks/{CANARY}", "/api/v1/flows"])
async def test_disconnected_client_is_not_logged_as_an_error(
    live_client: httpx.AsyncClient, logs: Logs, path: str
) -> None:
    async with run_server() as port:
        async with connection(port) as (_, writer):
            writer.write(head("POST", path, "Content-Length: 100") + CANARY.encode())
            await writer.drain()
        lines = logs()
        async with asyncio.timeout(10):
            while not requests_of(lines):
                await asyncio.sleep(0.01)
                lines += logs()
    assert {line["level"] for line in lines} == {"info"}
    assert [status for _, _, status in requests_of(lines)] == [400]


@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_of_the_operator_are_replaced_in_every_line(monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    root = logging.getLogger()
    level, handlers, configuration = root.level, root.handlers[:], structlog.get_config()
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure_logging(level="INFO", as_json=as_json, secrets=[("[setting KEY]", CANARY)])
        structlog.stdlib.get_logger("test").info("answer", text=f"Bearer {CANARY.upper()}")
        logging.getLogger("library").error("failed: %s", CANARY)
        try:
            raise ValueError(CANARY)
        except ValueError:
            logging.getLogger("library").exception("failed")
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)
    text = stream.getvalue()
    assert CANARY not in text.lower()
    assert text.count("[setting KEY]") >= 3
