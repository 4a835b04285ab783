"""The server: its readiness, its warnings, and its graceful shutdown."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import uvicorn
from structlog.testing import capture_logs

from bloxserver.api.connections import LimitedProtocol
from bloxserver.api.server import Server, serving
from tests.api.limited_server import REQUEST, answer, closed, connect, greet
from tests.clerk import override_settings
from tests.server import head, status_of


@asynccontextmanager
async def started(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Server]:
    config = uvicorn.Config(greet, host=host, port=port, http="httptools", lifespan="off", log_config=None)
    async with starting(Server(config)) as server:
        yield server


@asynccontextmanager
async def starting(server: Server) -> AsyncIterator[Server]:
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    yield server
    for listening in server.servers:
        listening.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with started() as server:
        yield server


def address_of(server: Server) -> tuple[str, int]:
    address: tuple[str, int] = server.servers[0].sockets[0].getsockname()
    return address


async def test_ready_is_logged_once_the_server_listens() -> None:
    with capture_logs() as logs:
        async with started() as server:
            host, port = address_of(server)
    assert [(line["event"], line["host"], line["port"]) for line in logs] == [("ready", host, port)]
    with socket.create_server(("127.0.0.1", 0)) as taken, capture_logs() as logs, pytest.raises(SystemExit):
        async with started(port=taken.getsockname()[1]):
            pass
    assert [line["event"] for line in logs] == ["cannot listen"]


@pytest.mark.parametrize(
    ("host", "issuer", "warns"),
    [
        ("0.0.0.0", None, True),  # noqa: S104
        ("::", None, True),
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", "https://clerk.example.com", False),  # noqa: S104
    ],
)
async def test_unauthenticated_access_from_other_machines_logs_a_warning(
    host: str, issuer: str | None, warns: bool
) -> None:
    with override_settings(CLERK_ISSUER=issuer or ""), capture_logs() as logs:
        async with started(host):
            pass
    warnings = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert ["anyone who can reach this address is the development user" in text for text in warnings] == [True] * warns


async def test_connection_above_the_limit_of_its_address_gets_no_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def connection_made(protocol: LimitedProtocol, transport: Any) -> None:
        nonlocal made
        made += 1
        original(protocol, transport)

    original = LimitedProtocol.connection_made
    monkeypatch.setattr(LimitedProtocol, "connection_made", connection_made)
    with override_settings(MAX_CONNECTIONS_PER_ADDRESS="1"):
        server = serving(greet, "127.0.0.1", 0)  # type: ignore[arg-type]
        server.config.lifespan = "off"
        async with starting(server):
            reader, writer = await asyncio.open_connection(*address_of(server))
            writer.write(REQUEST)
            assert await status_of(reader) == 200
            refused, refused_writer = await asyncio.open_connection(*address_of(server))
            assert b'"code": "too_many_requests"' in await refused.read()
            refused_writer.close()
            writer.close()
    assert made == 1


async def test_request_in_the_backlog_gets_a_response_at_shutdown(server: Server) -> None:
    with socket.create_connection(address_of(server)) as connection:
        connection.sendall(REQUEST)
        stopping = asyncio.create_task(server.shutdown())  # before the event loop accepts the connection
        reader, writer = await asyncio.open_connection(sock=connection)
        assert await status_of(reader) == 200
        writer.close()
    await stopping


async def test_open_connection_gets_a_last_response_at_shutdown(server: Server) -> None:
    address = address_of(server)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(REQUEST)
    assert await status_of(reader) == 200
    await reader.readuntil(b"\r\n\r\n")
    stopping = asyncio.create_task(server.shutdown())
    await refused(address)
    writer.write(REQUEST)
    assert b"connection: close" in await reader.read()
    writer.close()
    await stopping


async def refused(address: tuple[str, int]) -> None:
    """Wait until connections are refused."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(*address)
            except ConnectionRefusedError:
                return
            writer.close()


@pytest.mark.parametrize(
    ("allowed", "forwarded", "client", "scheme"),
    [
        ("", "203.0.113.7", "127.0.0.1", "http"),
        ("10.0.0.0/8", "203.0.113.7", "127.0.0.1", "http"),
        ("127.0.0.1", "203.0.113.7", "203.0.113.7", "https"),
        ("127.0.0.0/8", "1.1.1.1, 203.0.113.7", "203.0.113.7", "https"),
        ("127.0.0.1,10.0.0.0/8", "1.1.1.1, 203.0.113.7, 10.0.0.2", "203.0.113.7", "https"),
    ],
)
async def test_forwarded_headers_are_used_only_from_named_proxies(
    stack: AsyncExitStack, allowed: str, forwarded: str, client: str, scheme: str
) -> None:
    """The rightmost address that is not a proxy counts. `Forwarded` is ignored."""

    async def describe(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, f"{scope['client'][0]} {scope['scheme']}".encode())

    with override_settings(FORWARDED_ALLOW_IPS=allowed):
        server = serving(describe, "127.0.0.1", 0)  # type: ignore[arg-type]
        server.config.lifespan = "off"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            running = asyncio.create_task(uvicorn.Server(server.config).serve(sockets=[listener]))
            reader, writer = await connect(stack, listener.getsockname()[1])
            forged = (f"X-Forwarded-For: {forwarded}", "X-Forwarded-Proto: https", "Forwarded: for=9.9.9.9;proto=https")
            writer.write(head("GET", "/", *forged, "Connection: close"))
            body = (await closed(reader)).rpartition(b"\r\n\r\n")[2]
            server.should_exit = True
            running.cancel()
    assert body.decode() == f"{client} {scheme}"
