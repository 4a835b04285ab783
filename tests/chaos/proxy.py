"""A TCP proxy for PostgreSQL that can delay traffic, close connections, or drop traffic silently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import sqlalchemy as sa

CHUNK = 65536
PID_MESSAGE = b"K\x00\x00\x00\x0c"
"""The start of the BackendKeyData message, which contains the process id of the server."""
IN_TRANSACTION = b"Z\x00\x00\x00\x05T"
"""A ReadyForQuery message inside a transaction: the server waits for its next statement."""


class Proxy:
    """Forwards connections, with the faults that are switched on."""

    def __init__(self, server: sa.URL) -> None:
        self._host = str(server.query.get("host") or server.host)
        self._server_port = server.port or 5432
        self._passing = asyncio.Event()
        self._passing.set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._cut = False
        self._delay = 0.0
        self._stop_in_transaction = False
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.server_processes: set[int] = set()
        """Process ids of PostgreSQL for all connections through this proxy so far."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await self._drop_all()

    def url(self, database_url: str) -> str:
        """Return the URL of the database through this proxy."""
        url = sa.make_url(database_url)
        query = {name: value for name, value in url.query.items() if name != "host"}
        proxied = url.set(host="127.0.0.1", port=self.port, query=query)
        return proxied.render_as_string(hide_password=False)

    def slow_down(self, seconds: float) -> None:
        """Delay the traffic in each direction."""
        self._delay = seconds

    async def cut(self) -> None:
        """Close all connections, and close new ones immediately."""
        self._cut = True
        await self._drop_all()

    def stop_traffic(self) -> None:
        """Stop the traffic in both directions without closing connections."""
        self._passing.clear()

    def stop_traffic_in_transaction(self) -> None:
        """Stop the traffic as soon as the server waits for the next statement of a transaction."""
        self._stop_in_transaction = True

    def stop_answers(self) -> None:
        """Stop the traffic from the server: it executes statements, and their results do not arrive."""
        self._answering.clear()

    @property
    def is_silent(self) -> bool:
        return not self._passing.is_set()

    def abandon_connections(self) -> None:
        """Stop the traffic of existing connections permanently. New connections work."""
        self.stop_traffic()
        self._passing = asyncio.Event()
        self._passing.set()

    def heal(self) -> None:
        """Switch off all faults; held traffic is forwarded."""
        self._delay, self._cut, self._stop_in_transaction = 0.0, False, False
        self._passing.set()
        self._answering.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)

        def end(task: asyncio.Task[None]) -> None:
            # A callback, because a task that is cancelled before it starts does not run its `finally`.
            self._connections.discard(task)
            writer.transport.abort()

        connection.add_done_callback(end)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            if not self._cut:
                await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing = self._passing
        await passing.wait()
        if self._host.startswith("/"):
            path = f"{self._host}/.s.PGSQL.{self._server_port}"
            server_reader, server_writer = await asyncio.open_unix_connection(path)
        else:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._server_port)
        directions = (
            asyncio.create_task(self._pump(reader, server_writer, passing, from_server=False)),
            asyncio.create_task(self._pump(server_reader, writer, passing, from_server=True)),
        )
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # First, because this task can be cancelled again while it waits for the directions.
            server_writer.transport.abort()
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event, *, from_server: bool
    ) -> None:
        while data := await reader.read(CHUNK):
            if from_server:
                self._inspect(data)
            await asyncio.sleep(self._delay)
            await passing.wait()
            if from_server:
                await self._answering.wait()
            writer.write(data)
            await writer.drain()

    def _inspect(self, data: bytes) -> None:
        if (position := data.find(PID_MESSAGE)) >= 0:
            start = position + len(PID_MESSAGE)
            self.server_processes.add(int.from_bytes(data[start : start + 4], "big"))
        if self._stop_in_transaction and data.endswith(IN_TRANSACTION):
            self.stop_traffic()

    async def _drop_all(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
