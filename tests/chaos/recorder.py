"""The external HTTP server that the flows call. It records requests by idempotency key."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

STEPS = ("first", "second", "last")


@dataclass
class Call:
    """A request of a step. Times are in monotonic seconds."""

    path: str
    key: str
    """The idempotency key, which contains the ids of execution and step."""
    count: int
    """The sequence number of the call. The response contains it, so that rows show which response they store."""
    number: int
    """The number in the input of the execution."""
    started: float = field(default_factory=time.monotonic)
    answered: float | None = None
    lost: float | None = None
    """When the client disconnected before the response."""

    @property
    def execution_id(self) -> UUID:
        return UUID(self.key[:36])

    @property
    def step_key(self) -> str:
        return self.key[37:]

    def __str__(self) -> str:
        end = "answered" if self.answered else "lost" if self.lost else "open"
        return f"{self.count} ({self.started:.3f} to {self.ended or 0:.3f} s, {end})"

    @property
    def ended(self) -> float | None:
        return self.answered or self.lost


Hold = Callable[[Call], Awaitable[None]]


async def respond_immediately(call: Call) -> None:
    """Do not hold the call."""


class Recorder:
    """Responds to every call after `hold` returns; with 400 in the last step if `fails(number)` is true."""

    def __init__(self, hold: Hold = respond_immediately, fails: Callable[[int], bool] = lambda number: False) -> None:
        self.hold = hold
        self.fails = fails
        self.calls: dict[str, list[Call]] = defaultdict(list)
        """By key, in order."""
        self.all_calls: list[Call] = []
        self.notifications: list[tuple[str, str]] = []
        """`webhook-id` and execution of each failure notification."""
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Recorder]:
        connections: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                while await self._exchange(reader, writer):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client was killed, or the scenario ended
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in list(connections):
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    @property
    def repeated(self) -> list[list[Call]]:
        """The calls of each step that was called more than once."""
        return [calls for calls in self.calls.values() if len(calls) > 1]

    @property
    def open_calls(self) -> list[Call]:
        """The calls without a response so far."""
        return [call for call in self.all_calls if call.ended is None]

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Handle one request. Returns whether the connection stays open."""
        line = await reader.readline()
        if not line:
            return False
        path = line.split()[1].decode().strip("/")
        headers = await _read_headers(reader)
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"null")
        if path == "notification":
            self.notifications.append((headers["webhook-id"], body["data"]["executionId"]))
            status, body_text = 200, b"{}"
        else:
            call = self._record(path, headers["idempotency-key"], int(body["number"]))
            if not await self._wait(call, reader):
                return False
            status = 400 if path == STEPS[-1] and self.fails(call.number) else 200
            body_text = json.dumps({"number": call.number, "call": call.count}).encode()
            call.answered = time.monotonic()
        writer.write(_response(status, body_text))
        await writer.drain()
        return True

    def _record(self, path: str, key: str, number: int) -> Call:
        call = Call(path, key, len(self.all_calls) + 1, number)
        self.all_calls.append(call)
        self.calls[key].append(call)
        return call

    async def _wait(self, call: Call, reader: asyncio.StreamReader) -> bool:
        """Hold the call. Returns whether the client is still connected afterwards."""
        holding = asyncio.ensure_future(self.hold(call))
        disconnected = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({holding, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            if disconnected.done():
                call.lost = time.monotonic()
                return False
            holding.result()
            return True
        finally:
            for task in (holding, disconnected):
                task.cancel()
            await asyncio.gather(holding, disconnected, return_exceptions=True)


async def _read_headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    while (line := (await reader.readline()).decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return headers


def _response(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} Response\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chain(recorder_url: str, second: Mapping[str, Any] | None = None) -> str:
    """Return an organism of three steps that call the recorder. `second` replaces members of the second listener.

    Failure notifications go to the recorder too.
    """
    listeners: list[dict[str, Any]] = [
        {
            "name": step,
            "description": "Calls the recorder",
            "handler": "http.request",
            "config": {"method": "POST", "url": f"{recorder_url}/{step}", "body": {"number": "{{ input.number }}"}},
            "peers": [*STEPS[index + 1 : index + 2]],
            "timeout_seconds": 120,
        }
        for index, step in enumerate(STEPS)
    ]
    listeners[1] |= second or {}
    execution = {"timeout_seconds": 600, "on_failure": {"url": f"{recorder_url}/notification"}}
    return json.dumps({"organism": {"name": "chain"}, "listeners": listeners, "execution": execution})
