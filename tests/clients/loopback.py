"""An HTTP server on 127.0.0.1 that sends scripted responses byte by byte, and a client's errors."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from bloxserver.clients.http import GuardedClient, OutgoingRequestError
from tests.listening import listening

Answer = bytes | Callable[[StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Received:
    """A received request, with lower-case header names."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class LoopbackServer:
    """Responds to each path with the bytes in `answers`."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    serving: set[asyncio.Task[Any]] = field(default_factory=set)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            while True:
                request = await _read_request(reader)
                self.received.append(request)
                answer = self.answers[request.path.partition("?")[0]]
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    await answer(writer)
                await writer.drain()
        finally:
            self.serving.discard(task)


def answer(
    body: bytes = b"", *, status: str = "200 OK", headers: Mapping[str, str] | None = None, length: int | None = None
) -> bytes:
    """Return the bytes of a response. `length` is its Content-Length, by default the correct one."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@asynccontextmanager
async def running_server() -> AsyncIterator[LoopbackServer]:
    server = LoopbackServer()
    async with listening(server.serve, backlog=2000) as server.port:
        yield server


async def refusal(client: GuardedClient, url: str, method: str = "GET", **options: Any) -> str:
    """Return the error code of a request."""
    with pytest.raises(OutgoingRequestError) as caught:
        _ = (await client.request(method, url, **options)).content
    assert "secret" not in caught.value.message
    return caught.value.code


async def _read_request(reader: StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Received(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))
