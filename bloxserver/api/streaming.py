"""Responses that stay open while an execution runs: `?wait` and Server-Sent Events.

They are sent after the request's session has ended. They read the database with short sessions when the process's
`ExecutionWatcher` reports a change, so that an open response holds no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Annotated, Any, Self
from uuid import UUID

import structlog
from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from bloxserver.api.rendering import render
from bloxserver.api.schemas import AgentText, AwaitedExecution, Execution, ExecutionOutline, StepOutline
from bloxserver.api.watching import ExecutionWatcher, Watch
from bloxserver.errors import NotFound
from bloxserver.event_loop import in_parts
from bloxserver.models.enums import ExecutionStatus
from bloxserver.queries.executions import find_execution, read_outline
from bloxserver.queries.steps import StepPosition, read_step_changes

log = structlog.stdlib.get_logger("bloxserver.request")

END_EVENT_ID = "end"
"""The id of a stream's last event. A client that sends it has received all events."""
STREAM_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
"""A proxy that compresses or buffers the stream would delay its events."""
MAX_STREAM_SECONDS = 3600.0
"""A stream is closed after this time; the client reconnects and continues."""
KEEPALIVE_SECONDS = 15.0
"""An idle stream sends a comment after this time, so that proxies keep the connection and dead clients are detected."""
RECONNECT_MS = 1000
NO_HEADERS: Mapping[str, str] = {}
STEP_BATCH_SIZE = 200
"""The maximum number of steps in one read."""
PART_EVENTS = 50
"""About a millisecond to write."""
BEFORE_FIRST_SEQUENCE = -1
MAX_ID = UUID(int=2**128 - 1)
MAX_SEQUENCE = 2**31 - 1


async def _watcher(request: Request) -> ExecutionWatcher:
    watcher: ExecutionWatcher = request.app.state.watcher
    return watcher


Watcher = Annotated[ExecutionWatcher, Depends(_watcher)]


class Waiter:
    """The waits of a response for changes of its execution.

    They end after `timeout` seconds, when the client disconnects, and when the server shuts down.
    """

    def __init__(self, receive: Receive, watcher: ExecutionWatcher, watch: Watch, timeout: float) -> None:
        self._receive = receive
        self._watcher = watcher
        self._watch = watch
        self._clock = asyncio.get_running_loop().time
        self._deadline = self._clock() + timeout
        self.has_changed = False
        """Whether the last wait ended before its time elapsed."""

    async def __aenter__(self) -> Self:
        self._disconnect = asyncio.create_task(self._wait_for_disconnect())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._disconnect.cancel()
        with suppress(asyncio.CancelledError):
            await self._disconnect
        await self._watcher.end(self._watch)

    async def _wait_for_disconnect(self) -> None:
        with suppress(Exception):
            while (await self._receive())["type"] != "http.disconnect":
                pass
        self._watch.changed.set()

    async def wait(self, seconds: float = float("inf")) -> bool:
        """Wait for something to send, at most for `seconds`. Returns False at once when waiting has ended."""
        remaining = self._deadline - self._clock()
        if remaining > 0 and not self._has_ended():
            self.has_changed = await self._watcher.wait(self._watch, min(seconds, remaining))
        return self._deadline > self._clock() and not self._has_ended()

    @property
    def disconnected(self) -> bool:
        """Whether the client has disconnected."""
        return self._disconnect.done()

    def _has_ended(self) -> bool:
        return self.disconnected or self._watch.shutdown.requested


class WaitingResponse(Response):
    """The response to a request with `?wait`: the execution when it has ended, or 202 after the timeout."""

    def __init__(
        self,
        watcher: ExecutionWatcher,
        watch: Watch,
        accepted: Execution,
        seconds: float,
        *,
        status_code: int,
        body: type[Execution],
        location: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """`status_code` and `body` are used if the execution has ended, `location` if it has not."""
        super().__init__(status_code=status_code)
        self._watcher = watcher
        self._watch = watch
        self._accepted = accepted
        self._seconds = seconds
        self._body = body
        self._location = location
        self._added_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = None
        async with Waiter(receive, self._watcher, self._watch, self._seconds) as waiter:
            while ended is None and await waiter.wait():
                ended = await self._read()
        if ended is None:
            headers = {**self._added_headers, **({"Location": self._location} if self._location else {})}
            response = await _response(AwaitedExecution, self._accepted, "Execution is still running", 202, headers)
        else:
            response = await _response(self._body, ended, "Execution has ended", self.status_code, self._added_headers)
        await response(scope, receive, send)

    async def _read(self) -> Execution | None:
        """The execution if it has ended. Raises `NotFound` if it was deleted."""
        try:
            async with self._watch.sessions.reading() as session:
                execution = await find_execution(session, self._accepted.id)
                if execution is None:
                    raise NotFound("Execution")
                if execution.status is ExecutionStatus.RUNNING:
                    return None
                return Execution.model_validate(execution)
        except NotFound:
            raise
        except Exception as error:
            # An error response would mean that the execution was not accepted.
            log.warning("execution poll failed", error=type(error).__name__)
            self._watch.forget()
            return None


async def _response(
    body: type[Execution], execution: Execution, message: str, status: int, headers: Mapping[str, str]
) -> Response:
    values = execution.model_dump() | {"execution_id": execution.id, "message": message}
    content = body.model_validate(values)

    async def respond() -> Response:
        return JSONResponse(content.model_dump(mode="json", by_alias=True), status, headers)

    return await render(respond)


class EventStream(Response):
    """The events of an execution as Server-Sent Events.

    The first and the last event are `ExecutionEvent`s. Each change of a step is a `StepEvent`, whose id a client sends
    to continue after a reconnect. `AgentTextEvent`s have the texts of agents while they are written.
    """

    media_type = "text/event-stream"

    def __init__(self, watcher: ExecutionWatcher, watch: Watch, last_event_id: str | None) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["Content-Length"]
        self._watcher = watcher
        self._watch = watch
        self._position = StepPosition(_sequence(last_event_id), MAX_ID)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with Waiter(receive, self._watcher, self._watch, MAX_STREAM_SECONDS) as waiter:
            async for chunk in self._chunks(waiter):
                # `send` waits while the client has not read 64 KiB that were sent before. The server closes the
                # connection if it does not read for WRITE_TIMEOUT_SECONDS.
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self, waiter: Waiter) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        yield format_sse_event(retry=RECONNECT_MS)
        sent_at: float | None = None
        while True:
            execution, steps = await self._read()
            if execution is None:
                return
            if sent_at is None:
                yield _event("execution", execution)
            # Before the steps: the text of an answer precedes the end of its step.
            texts = self._watch.take_texts()
            for text in texts:
                yield _event("agent.text", AgentText.model_validate(text))
            async for part in in_parts(self._step_events(steps), PART_EVENTS):
                yield b"".join(_event("step", StepOutline.model_validate(step), id) for step, id in part)
            if sent_at is None or steps or texts:
                sent_at = clock()
            elif clock() - sent_at >= KEEPALIVE_SECONDS:
                yield KEEPALIVE_COMMENT
                sent_at = clock()
            if len(steps) == STEP_BATCH_SIZE:
                if waiter.disconnected:
                    return
                continue
            if execution.status is not ExecutionStatus.RUNNING:
                yield _event("execution", execution, END_EVENT_ID)
                return
            while True:
                if not await waiter.wait(sent_at + KEEPALIVE_SECONDS - clock()):
                    return
                if self._watch.take_change():
                    break
                texts = self._watch.take_texts()
                for text in texts:
                    yield _event("agent.text", AgentText.model_validate(text))
                if texts or not waiter.has_changed:
                    if not texts:
                        yield KEEPALIVE_COMMENT
                    sent_at = clock()

    async def _read(self) -> tuple[ExecutionOutline | None, Sequence[Any]]:
        """The execution and its changed steps, read in this order, so that an ended execution has all its steps.

        The execution is null if it was deleted or could not be read.
        """
        try:
            async with self._watch.sessions.reading() as session:
                execution = await read_outline(session, self._watch.execution_id)
                steps = await read_step_changes(session, self._watch.execution_id, self._position, STEP_BATCH_SIZE)
        except Exception as error:
            # The stream ends. The client reconnects, and gets an error response if the database is still unavailable.
            log.warning("execution poll failed", error=type(error).__name__)
            return None, ()
        return execution and ExecutionOutline.model_validate(execution), steps

    def _step_events(self, steps: Sequence[Any]) -> list[tuple[Any, str | None]]:
        """The changed steps, with the ids of their events.

        Steps that changed together have the same sequence number. Only the last of their events has it as its id;
        otherwise a client that reconnects could miss the others.
        """
        events = []
        for step, following in zip_longest(steps, steps[1:]):
            self._position = StepPosition(step.sequence, step.id)
            is_last = following.sequence != step.sequence if following else len(steps) < STEP_BATCH_SIZE
            events.append((step, str(step.sequence) if is_last else None))
        return events


def _event(name: str, body: ExecutionOutline | StepOutline | AgentText, id: str | None = None) -> bytes:
    return format_sse_event(event=name, data_str=body.model_dump_json(by_alias=True), id=id)


def _sequence(last_event_id: str | None) -> int:
    """The sequence number in an event's id. With any other id, the stream starts at the first step."""
    if last_event_id is None or not (last_event_id.isascii() and last_event_id.isdigit()):
        return BEFORE_FIRST_SEQUENCE
    return min(int(last_event_id[:20]), MAX_SEQUENCE)
