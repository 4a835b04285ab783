"""A minimal HTTP client. It uses little CPU, so that attacks and measurements disturb each other little."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

LIMIT = 1024 * 1024
MAX_ERROR = 4_000


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outcome(self) -> str:
        """The status, with the code of an error."""
        if self.status < 400:
            return str(self.status)
        try:
            return f"{self.status} {self.json()['code']}"
        except (ValueError, KeyError, TypeError):
            return f"{self.status} without a code"


class Client:
    """Sends requests to one server from the address `source`. Connections are reused if `keep` is set."""

    def __init__(self, base_url: str, token: str | None = None, *, source: str = "127.0.0.1", keep: bool = False):
        split = urlsplit(base_url)
        self.host, self.port = split.hostname or "", split.port or 80
        self._token = token
        self._source = source
        self._keep = keep
        self._idle: list[Streams] = []

    async def connect(self) -> Streams:
        return await asyncio.open_connection(self.host, self.port, local_addr=(self._source, 0), limit=LIMIT)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        content_type: str = "application/json",
        discard: bool = False,
    ) -> Answer:
        """Send a request and read the response; the body of a success is not kept if `discard` is set."""
        head = self.head(method, path, f"Content-Type: {content_type}", f"Content-Length: {len(body)}")
        async with self._connection() as (reader, writer):
            writer.write(head)
            writer.write(body)
            await writer.drain()
            return await read_answer(reader, discard=discard)

    def head(self, method: str, path: str, *lines: str) -> bytes:
        """Return the head of a request, signed in if the client has a token."""
        if self._token:
            lines = (*lines, f"Authorization: Bearer {self._token}")
        if not self._keep:
            lines = (*lines, "Connection: close")
        return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Streams]:
        streams = self._idle.pop() if self._idle else await self.connect()
        try:
            yield streams
        except BaseException:
            streams[1].transport.abort()
            raise
        if self._keep and not streams[0].at_eof():
            self._idle.append(streams)
        else:
            streams[1].close()


async def read_answer(reader: asyncio.StreamReader, *, discard: bool = False) -> Answer:
    """Read one response. Raises `ConnectionError` if the server closes the connection before its end."""
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        discard = discard and status < 400
        if "content-length" in headers:
            body = await _read_exactly(reader, int(headers["content-length"]), discard=discard)
        elif headers.get("transfer-encoding") == "chunked":
            body = await _read_chunks(reader, discard=discard)
        else:
            body = b"" if status == 204 else await reader.read()
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("the server closed the connection") from error
    return Answer(status, body)


async def _read_exactly(reader: asyncio.StreamReader, count: int, *, discard: bool) -> bytes:
    if not discard:
        return await reader.readexactly(count)
    while count > 0:
        data = await reader.read(min(count, LIMIT))
        if not data:
            raise asyncio.IncompleteReadError(b"", count)
        count -= len(data)
    return b""


async def _read_chunks(reader: asyncio.StreamReader, *, discard: bool) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        chunk = await _read_exactly(reader, size, discard=discard)
        body += chunk
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body
