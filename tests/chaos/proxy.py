"""A stretch of network before PostgreSQL that can be slow, cut, or silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import sqlalchemy as sa

CHUNK = 65536
PID_MESSAGE = b"K\x00\x00\x00\x0c"
"""How the message begins in which the server tells the number of its process."""
IN_TRANSACTION = b"Z\x00\x00\x00\x05T"
"""The end of what a server says that waits for the next statement of a transaction."""


class Proxy:
    """Passes connections on, as its state says."""

    def __init__(self, server: sa.URL) -> None:
        self._host = str(server.query.get("host") or server.host)
        self._server_port = server.port or 5432
        self._passing = asyncio.Event()
        self._passing.set()
        self._cut = False
        self._delay = 0.0
        self._stop_in_transaction = False
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.server_processes: set[int] = set()
        """The processes of PostgreSQL that serve those behind this proxy, or have served them."""

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
        """The database's URL for those who are to come this way."""
        url = sa.make_url(database_url)
        query = {name: value for name, value in url.query.items() if name != "host"}
        through = url.set(host="127.0.0.1", port=self.port, query=query)
        return through.render_as_string(hide_password=False)

    def slow_down(self, seconds: float) -> None:
        """Everything takes so much longer, each way."""
        self._delay = seconds

    async def cut(self) -> None:
        """All connections break, and new ones are closed at once."""
        self._cut = True
        await self._drop_all()

    def fall_silent(self) -> None:
        """Nothing passes any more, either way, and nobody is told."""
        self._passing.clear()

    def fall_silent_in_transaction(self) -> None:
        """As soon as somebody is about to be told that the server waits for more of a transaction."""
        self._stop_in_transaction = True

    @property
    def is_silent(self) -> bool:
        return not self._passing.is_set()

    def strand(self) -> None:
        """The connections that there are stay silent for ever; new ones pass."""
        self.fall_silent()
        self._passing = asyncio.Event()
        self._passing.set()

    def heal(self) -> None:
        """What was held passes now."""
        self._delay, self._cut, self._stop_in_transaction = 0.0, False, False
        self._passing.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)

        def end(task: asyncio.Task[None]) -> None:
            # Here, because a task that is cancelled before its first step never enters its `finally`.
            self._connections.discard(task)
            writer.transport.abort()

        connection.add_done_callback(end)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            if not self._cut:
                await self._pass_on(reader, writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing = self._passing
        await passing.wait()
        if self._host.startswith("/"):
            path = f"{self._host}/.s.PGSQL.{self._server_port}"
            server_reader, server_writer = await asyncio.open_unix_connection(path)
        else:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._server_port)
        ways = (
            asyncio.create_task(self._pump(reader, server_writer, passing, from_server=False)),
            asyncio.create_task(self._pump(server_reader, writer, passing, from_server=True)),
        )
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            server_writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event, *, from_server: bool
    ) -> None:
        while data := await reader.read(CHUNK):
            if from_server:
                self._look_at(data)
            await asyncio.sleep(self._delay)
            await passing.wait()
            writer.write(data)
            await writer.drain()

    def _look_at(self, data: bytes) -> None:
        if (place := data.find(PID_MESSAGE)) >= 0:
            start = place + len(PID_MESSAGE)
            self.server_processes.add(int.from_bytes(data[start : start + 4], "big"))
        if self._stop_in_transaction and data.endswith(IN_TRANSACTION):
            self.fall_silent()

    async def _drop_all(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
