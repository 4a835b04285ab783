"""A server that stops, seen by clients that cannot know."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from bloxserver.api.server import Server
from tests.server import head, status_of

REQUEST = head("GET", "/")


async def greet(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    config = uvicorn.Config(greet, host="127.0.0.1", port=0, http="httptools", lifespan="off", log_config=None)
    server = Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    yield server
    for listening in server.servers:
        listening.close()


def address_of(server: Server) -> tuple[str, int]:
    address: tuple[str, int] = server.servers[0].sockets[0].getsockname()
    return address


async def test_a_request_that_waits_to_be_accepted_is_answered(server: Server) -> None:
    with socket.create_connection(address_of(server)) as connection:
        connection.sendall(REQUEST)
        stopping = asyncio.create_task(server.shutdown())  # before the loop has seen the connection
        reader, writer = await asyncio.open_connection(sock=connection)
        assert await status_of(reader) == 200
        writer.close()
    await stopping


async def test_a_request_on_an_open_connection_is_answered_as_its_last(server: Server) -> None:
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
    """Until nobody listens there."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(*address)
            except ConnectionRefusedError:
                return
            writer.close()
