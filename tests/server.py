"""Runs the application in a real uvicorn on loopback, for tests of the connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from bloxserver.api.connection_limits import connection_limits
from bloxserver.api.connections import limited_protocol
from bloxserver.api.main import app
from bloxserver.api.shutdown import Shutdown
from bloxserver.settings import Settings


@asynccontextmanager
async def run_server(settings: Settings | None = None, *, send_buffer: int = 0) -> AsyncIterator[int]:
    """Run the server and yield its port. The lifespan is off, so that dependency overrides apply.

    `settings` are those of the limits of connections; there are none by default. `send_buffer` is that of the system,
    in bytes.
    """
    http = "httptools" if settings is None else limited_protocol(connection_limits(settings))
    config = uvicorn.Config(app, http=http, lifespan="off", log_config=None, server_header=False)
    server = uvicorn.Server(config)
    app.state.shutdown = shutdown = Shutdown()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            shutdown.request()
            await serving
            app.state.shutdown = Shutdown()


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


def head(method: str, path: str, *lines: str) -> bytes:
    """Return the head of a request with a JSON body."""
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", "Host: test", "Content-Type: application/json", *lines, "", ""]
    ).encode()


async def status_of(reader: asyncio.StreamReader) -> int:
    """Read the status of the next response, within ten seconds."""
    async with asyncio.timeout(10):
        return int((await reader.readline()).split()[1])
