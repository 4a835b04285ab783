"""Serves an application on loopback with limits of connections, and connects to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import uvicorn

from bloxserver.api.connection_limits import connection_limits
from bloxserver.api.connections import limited_protocol
from bloxserver.settings import Settings
from tests.server import head, status_of

Application = Callable[[Any, Any, Any], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

REQUEST = head("GET", "/")
SOON = 0.1
NEVER = 600.0


async def answer(send: Any, body: bytes = b"") -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def greet(scope: Any, receive: Any, send: Any) -> None:
    await answer(send)


async def read_body(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    while message["type"] == "http.request" and message["more_body"]:
        message = await receive()
    if message["type"] == "http.request":
        await answer(send)


def limits(**changes: Any) -> Settings:
    timeouts = {"header_timeout_seconds": NEVER, "write_timeout_seconds": NEVER}
    return Settings(_env_file=None, **(timeouts | changes))


@asynccontextmanager
async def serving(settings: Settings, app: Application = greet, *, send_buffer: int = 0) -> AsyncIterator[int]:
    """Serve `app` with the limits of `settings`, and yield the port. `send_buffer` is that of the system, in bytes."""
    config = uvicorn.Config(
        app, http=limited_protocol(connection_limits(settings)), lifespan="off", log_config=None, timeout_keep_alive=60
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await running


async def connect(stack: AsyncExitStack, port: int, address: str = "127.0.0.1") -> Streams:
    """Connect from this loopback address. The connection is closed with the stack."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    stack.callback(writer.close)
    return reader, writer


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Wait until the server closes the connection, and return what it sent before."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def get(streams: Streams) -> int:
    """Send a request and read its response, which has no body."""
    reader, writer = streams
    writer.write(REQUEST)
    status = await status_of(reader)
    await reader.readuntil(b"\r\n\r\n")
    return status
