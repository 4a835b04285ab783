"""A server that the attacker controls, for flows that send requests."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from typing import Literal, Self

DRIP_SECONDS = 0.5
MEGABYTE = 1_000_000
JSON = "application/json"


def _response(body: bytes, content_type: str = JSON, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-type: {content_type}", f"content-length: {len(body)}", "connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def _bomb() -> bytes:
    """Return 1 MB that gzip expands to 1 GB."""
    member = gzip.compress(bytes(100 * MEGABYTE), 9)
    return member * 10


class HostileServer:
    """Serves the response that the path names. Paths that it does not know get no response."""

    async def __aenter__(self) -> Self:
        self._responses: dict[str, bytes] = {}
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> Literal[False]:
        self._server.close()
        return False

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            if path == "/drip":
                await self._drip(writer)
            if path not in PAGES:
                await reader.read()
            writer.write(self._page(path))
            await writer.drain()
        writer.close()

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000000\r\n\r\n[")
        while True:
            await asyncio.sleep(DRIP_SECONDS)
            writer.write(b"1,")
            await writer.drain()

    def _page(self, path: str) -> bytes:
        if path not in self._responses:
            self._responses[path] = PAGES[path]()
        return self._responses[path]


PAGES = {
    "/ok": lambda: _response(b"{}"),
    "/lists": lambda: _response(b"[" + b"[]," * 1_700_000 + b"[]]"),
    "/text": lambda: _response(b"a" * 5_000_000, "text/plain"),
    "/charset": lambda: _response(b"\x1b$B!!" * 1_000_000, "text/plain; charset=iso-2022-jp"),
    "/gzip": lambda: _response(_bomb(), JSON, "content-encoding: gzip"),
    "/lists.gz": lambda: _response(gzip.compress(b"[" + b"[]," * 1_700_000 + b"[]]"), JSON, "content-encoding: gzip"),
}
