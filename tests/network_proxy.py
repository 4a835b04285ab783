"""A stretch of network before a server, on loopback, that can swallow what is sent."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa


class NetworkProxy:
    """Passes connections on to the server of a database URL."""

    def __init__(self, url: str) -> None:
        self._server = sa.make_url(url)
        self._port = 0
        self._passing = asyncio.Event()
        self._passing.set()
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The database's URL for those who come this way."""
        url = self._server.set(host="127.0.0.1", port=self._port, query={})
        return url.render_as_string(hide_password=False)

    def fall_silent(self) -> None:
        """Nothing passes any more, either way, and nobody is told."""
        self._passing.clear()

    def heal(self) -> None:
        """What was held passes now."""
        self._passing.set()

    def strand(self) -> None:
        """The connections that there are stay silent for ever; new ones pass."""
        self.fall_silent()
        self._passing = asyncio.Event()
        self._passing.set()

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        connection = asyncio.create_task(self._pass_on(reader, writer))
        self._connections.add(connection)
        await asyncio.wait({connection})
        self._connections.discard(connection)

    async def aclose(self) -> None:
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _pass_on(self, reader: StreamReader, writer: StreamWriter) -> None:
        host, port = str(self._server.query.get("host") or self._server.host), self._server.port or 5432
        there: StreamWriter | None = None
        try:
            passing = self._passing
            await passing.wait()
            if host.startswith("/"):
                back, there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                back, there = await asyncio.open_connection(host, port)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pump(reader, there, passing))
                ways.create_task(self._pump(back, writer, passing))
        except* OSError:
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()

    async def _pump(self, reader: StreamReader, writer: StreamWriter, passing: asyncio.Event) -> None:
        while data := await reader.read(65_536):
            await passing.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


@asynccontextmanager
async def network_proxy(url: str) -> AsyncIterator[NetworkProxy]:
    proxy = NetworkProxy(url)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy._port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.aclose()
