"""The server outside that the flows call: it notes who called, and when, by idempotency key."""

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
    """One request of a step; times are of the monotonic clock."""

    path: str
    key: str
    """Names the execution and the step."""
    count: int
    """The how-manieth call of this recorder it is; its answer says so, so that rows show whose answer they hold."""
    number: int
    """What the execution was given."""
    began: float = field(default_factory=time.monotonic)
    answered: float | None = None
    lost: float | None = None
    """When the caller was gone before it had its answer."""

    @property
    def execution_id(self) -> UUID:
        return UUID(self.key[:36])

    @property
    def step_key(self) -> str:
        return self.key[37:]

    @property
    def ended(self) -> float | None:
        return self.answered or self.lost


Hold = Callable[[Call], Awaitable[None]]


async def answer_at_once(call: Call) -> None:
    """For what is not to be waited for."""


class Recorder:
    """Answers every call, after `hold` is through with it; numbers that `fails` names get a 400 in the last step."""

    def __init__(self, hold: Hold = answer_at_once, fails: Callable[[int], bool] = lambda number: False) -> None:
        self.hold = hold
        self.fails = fails
        self.calls: dict[str, list[Call]] = defaultdict(list)
        """By key, in their order."""
        self.all_calls: list[Call] = []
        self.notices: list[tuple[str, str]] = []
        """`webhook-id` and execution of each failure notice."""
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
                pass  # the caller was killed, or all is over
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
        """The calls of steps that were called more than once."""
        return [calls for calls in self.calls.values() if len(calls) > 1]

    @property
    def open_calls(self) -> list[Call]:
        """Those whose callers wait."""
        return [call for call in self.all_calls if call.ended is None]

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on after this request."""
        line = await reader.readline()
        if not line:
            return False
        path = line.split()[1].decode().strip("/")
        headers = await _read_headers(reader)
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"null")
        if path == "notice":
            self.notices.append((headers["webhook-id"], body["data"]["executionId"]))
            status, answer = 200, b"{}"
        else:
            call = self._note(path, headers["idempotency-key"], int(body["number"]))
            if not await self._held(call, reader):
                return False
            status = 400 if path == STEPS[-1] and self.fails(call.number) else 200
            answer = json.dumps({"number": call.number, "call": call.count}).encode()
            call.answered = time.monotonic()
        writer.write(_response(status, answer))
        await writer.drain()
        return True

    def _note(self, path: str, key: str, number: int) -> Call:
        call = Call(path, key, len(self.all_calls) + 1, number)
        self.all_calls.append(call)
        self.calls[key].append(call)
        return call

    async def _held(self, call: Call, reader: asyncio.StreamReader) -> bool:
        """Whether the caller still waits when the call has been held for as long as is wanted."""
        holding = asyncio.ensure_future(self.hold(call))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({holding, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                call.lost = time.monotonic()
                return False
            holding.result()
            return True
        finally:
            for task in (holding, gone):
                task.cancel()
            await asyncio.gather(holding, gone, return_exceptions=True)


async def _read_headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    while (line := (await reader.readline()).decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return headers


def _response(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} Answer\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chain(recorder_url: str, second: Mapping[str, Any] | None = None) -> str:
    """An organism of three steps, each a call of the recorder, but for the second where it is told otherwise; a
    failure is told to the recorder too.
    """
    listeners: list[dict[str, Any]] = [
        {
            "name": step,
            "description": "Calls the recorder",
            "handler": "http.request",
            "config": {"method": "POST", "url": f"{recorder_url}/{step}", "body": {"number": "{{ input.number }}"}},
            "peers": [*STEPS[place + 1 : place + 2]],
            "timeout_seconds": 120,
        }
        for place, step in enumerate(STEPS)
    ]
    listeners[1] |= second or {}
    execution = {"timeout_seconds": 600, "on_failure": {"url": f"{recorder_url}/notice"}}
    return json.dumps({"organism": {"name": "chain"}, "listeners": listeners, "execution": execution})
