"""A TCP server on loopback for tests. When it ends, no connection is open: one would fail a later test."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Serve = Callable[[StreamReader, StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, *, backlog: int = 100) -> AsyncIterator[int]:
    """Call `serve` for each connection, and then close the connection; yields the port.

    At the end, the calls are cancelled and all connections are closed.
    """
    calls: dict[asyncio.Task[None], StreamWriter] = {}

    async def attend(reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                await serve(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()

    def accept(reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(attend(reader, writer))
        calls[task] = writer
        task.add_done_callback(calls.pop)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=backlog)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task, writer in calls.items():
            task.cancel()
            writer.close()  # a call that has not begun does not close its connection
        await asyncio.gather(*calls, return_exceptions=True)
        await listener.wait_closed()


async def never_answer(reader: StreamReader, writer: StreamWriter) -> None:
    """Wait until the client closes the connection."""
    await reader.read()
