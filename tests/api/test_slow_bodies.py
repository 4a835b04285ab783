"""Bodies that are too large or do not arrive, over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import func, select

from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, FlowRecord, FlowStatus, TriggerRecord, TriggerType
from bloxserver.services.users import DEV_CLAIMS, user_of_claims
from tests.clerk import override_settings
from tests.server import connection, head, run_server, status_of

LIMIT = 64 * 1024
STALLED = 32
"""More clients than the pool has connections."""
PATHS = ["/webhooks/the-token", "/api/v1/flows"]


@pytest.fixture
async def port(live_client: httpx.AsyncClient, live_database: Database) -> AsyncIterator[int]:
    """A server with small limits, and a webhook in its database."""
    async with live_database.transaction() as session:
        user = await user_of_claims(session, DEV_CLAIMS)
        flow = FlowRecord(user_id=user.id, name="A flow", status=FlowStatus.RUNNING)
        session.add(flow)
        await session.flush()
        session.add(TriggerRecord(flow_id=flow.id, type=TriggerType.WEBHOOK, name="T", webhook_token="the-token"))
    with override_settings(MAX_BODY_BYTES=str(LIMIT), BODY_TIMEOUT_SECONDS="1"):
        async with run_server() as port:
            yield port


async def rows(database: Database) -> tuple[int, int]:
    async with database.transaction() as session:
        counts = [
            await session.scalar(select(func.count()).select_from(table)) for table in (FlowRecord, ExecutionRecord)
        ]
    return counts[0] or 0, counts[1] or 0


@pytest.mark.parametrize("path", PATHS)
async def test_body_over_the_limit_gets_413(port: int, live_database: Database, path: str) -> None:
    """A client that sends the whole body before it reads gets the response, with chunks and with a length."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(12):
                yield b" " * (LIMIT // 4)

        for body in (chunks(), b" " * (LIMIT + 1), b" " * (LIMIT * 10)):
            response = await client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 413
            assert response.json()["code"] == "payload_too_large"
            assert response.json()["detail"] == f"Request body is larger than {LIMIT} bytes"
        largest = b'{"name": "n"}'.ljust(LIMIT)
        response = await client.post(path, content=largest, headers={"Content-Type": "application/json"})
        assert response.status_code in (200, 201)
    assert sum(await rows(live_database)) == 2


@pytest.mark.parametrize("path", PATHS)
async def test_endless_body_closes_the_connection(port: int, live_database: Database, path: str) -> None:
    async with connection(port) as (reader, writer):
        writer.write(head("POST", path, "Transfer-Encoding: chunked"))
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        ending = asyncio.create_task(reader.read())
        sent = 0
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                while not ending.done():
                    writer.write(chunk)
                    await writer.drain()
                    sent += len(chunk)
            with suppress(ConnectionError):  # the response can be lost with the connection
                assert (await ending).startswith(b"HTTP/1.1 413 ")
        assert sent > LIMIT
    assert await rows(live_database) == (1, 0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_stalled_body_gets_408(port: int, live_database: Database, path: str, framing: str) -> None:
    with override_settings(BODY_TIMEOUT_SECONDS="0.2"):
        await stall(port, path, framing)
    assert await rows(live_database) == (1, 0)


async def stall(port: int, path: str, framing: str) -> None:
    async with connection(port) as (reader, writer):
        writer.write(head("POST", path, framing) + b"5\r\nhello\r\n")
        assert await status_of(reader) == 408
        answer = (await asyncio.wait_for(reader.read(), 10)).lower()
        assert b"connection: close" in answer
        assert b'"code":"request_timeout"' in answer


async def test_bodies_that_do_not_begin_get_408(port: int) -> None:
    """Also in requests that have waited for others of their address."""
    with override_settings(BODY_TIMEOUT_SECONDS="0.2"):
        async with AsyncExitStack() as stack:
            stalled = [await stack.enter_async_context(connection(port)) for _ in range(12)]
            for _, writer in stalled:
                writer.write(head("POST", PATHS[0], "Content-Length: 100"))
            assert [await status_of(reader) for reader, _ in stalled] == [408] * 12


async def test_stalled_clients_do_not_block_others(port: int, live_database: Database) -> None:
    """Other clients get responses while the stalled clients are connected, and after they disconnect."""
    with override_settings(BODY_TIMEOUT_SECONDS="60"):
        async with AsyncExitStack() as stack, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            stalled = [await stack.enter_async_context(connection(port)) for _ in range(STALLED)]
            for number, (_, writer) in enumerate(stalled):
                writer.write(head("POST", PATHS[number % 2], "Content-Length: 100") + b"half")
                await writer.drain()
            answers = [asyncio.create_task(reader.read()) for reader, _ in stalled]
            assert (await client.get("/api/v1/flows")).json()["total"] == 1
            assert (await client.post("/api/v1/flows", json={"name": "n"})).status_code == 201
            assert (await client.post(PATHS[0], content=b"x")).status_code == 200
            assert not any(answer.done() for answer in answers)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get("/api/v1/flows")).json()["total"] == 2
    await asyncio.gather(*answers, return_exceptions=True)
    assert await rows(live_database) == (2, 1)


@pytest.mark.parametrize("path", ["executions/{id}/retry", "triggers/{id}/deliveries/{id}/redeliver"])
async def test_stalled_body_with_an_idempotency_key_does_not_block_others(port: int, path: str) -> None:
    """The body is part of what the key stands for, also if the operation has none."""
    unknown = uuid4()
    path = f"/api/v1/flows/{unknown}/{path.format(id=unknown)}"
    with override_settings(BODY_TIMEOUT_SECONDS="60"):
        async with AsyncExitStack() as stack, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(STALLED):
                _, writer = await stack.enter_async_context(connection(port))
                writer.write(head("POST", path, "Content-Length: 100", "Idempotency-Key: k") + b"half")
                await writer.drain()
            async with asyncio.timeout(10):  # less than the timeouts of a connection and a lock
                assert (await client.post("/api/v1/flows", json={"name": "n"})).status_code == 201
