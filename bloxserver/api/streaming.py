"""Responses that stay open while an execution runs: `?wait` and Server-Sent Events.

They are sent after the request's session has ended. They poll the database with short sessions, so that an open
response holds no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any, Self
from uuid import UUID

import structlog
from fastapi import Response
from fastapi.responses import JSONResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from bloxserver.api.dependencies import SessionSource
from bloxserver.api.schemas import AwaitedExecution, Execution, ExecutionOutline, StepOutline
from bloxserver.api.shutdown import Shutdown
from bloxserver.errors import NotFound
from bloxserver.models.enums import ExecutionStatus
from bloxserver.queries.executions import find_execution, read_outline, read_status
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
STEP_BATCH_SIZE = 500
"""The maximum number of steps per poll."""
BEFORE_FIRST_SEQUENCE = -1
MAX_ID = UUID(int=2**128 - 1)
MAX_SEQUENCE = 2**31 - 1


class Poller:
    """The waits of a response between its reads of the database, with exponential backoff.

    Polling ends after `timeout` seconds, when the client disconnects, and when the server shuts down.
    """

    def __init__(
        self, receive: Receive, shutdown: Shutdown, min_interval: float, max_interval: float, timeout: float
    ) -> None:
        self._receive = receive
        self._shutdown = shutdown
        self._min_interval, self._max_interval = min_interval, max_interval
        self._interval = min_interval
        self._deadline = asyncio.get_running_loop().time() + timeout

    async def __aenter__(self) -> Self:
        self._disconnect = asyncio.create_task(self._wait_for_disconnect())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._disconnect.cancel()
        with suppress(asyncio.CancelledError):
            await self._disconnect

    async def _wait_for_disconnect(self) -> None:
        with suppress(Exception):
            while (await self._receive())["type"] != "http.disconnect":
                pass

    def reset_interval(self) -> None:
        """Make the next wait the shortest again."""
        self._interval = self._min_interval

    async def wait(self) -> bool:
        """Wait until the next poll. Returns False at once when polling has ended."""
        remaining = self._deadline - asyncio.get_running_loop().time()
        if remaining > 0 and not self._has_ended():
            await asyncio.wait({self._disconnect}, timeout=min(self._interval, remaining))
            self._interval = min(self._interval * 1.5, self._max_interval)
        return remaining > 0 and not self._has_ended()

    def _has_ended(self) -> bool:
        return self._disconnect.done() or self._shutdown.requested


class WaitingResponse(Response):
    """The response to a request with `?wait`: the execution when it has ended, or 202 after the timeout."""

    def __init__(
        self,
        sessions: SessionSource,
        shutdown: Shutdown,
        accepted: Execution,
        seconds: float,
        *,
        status_code: int,
        body: type[Execution],
        location: str | None = None,
    ) -> None:
        """`status_code` and `body` are used if the execution has ended."""
        super().__init__(status_code=status_code)
        self._sessions = sessions
        self._shutdown = shutdown
        self._accepted = accepted
        self._seconds = seconds
        self._body = body
        self._location = location

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = None
        async with Poller(receive, self._shutdown, 0.02, 0.25, self._seconds) as poller:
            while ended is None and await poller.wait():
                ended = await self._poll()
        if ended is None:
            headers = {"Location": self._location} if self._location else None
            content = _content(AwaitedExecution, self._accepted, "Execution is still running")
            response = JSONResponse(content, 202, headers)
        else:
            response = JSONResponse(_content(self._body, ended, "Execution has ended"), self.status_code)
        await response(scope, receive, send)

    async def _poll(self) -> Execution | None:
        """The execution if it has ended. Raises `NotFound` if it was deleted."""
        try:
            async with self._sessions.reading() as session:
                if await read_status(session, self._accepted.id) is ExecutionStatus.RUNNING:
                    return None
                execution = await find_execution(session, self._accepted.id)
                if execution is None:
                    raise NotFound("Execution")
                return Execution.model_validate(execution)
        except NotFound:
            raise
        except Exception as error:
            # An error response would mean that the execution was not accepted.
            log.warning("execution poll failed", error=type(error).__name__)
            return None


def _content(body: type[Execution], execution: Execution, message: str) -> dict[str, Any]:
    values = execution.model_dump() | {"execution_id": execution.id, "message": message}
    return body.model_validate(values).model_dump(mode="json", by_alias=True)


class EventStream(Response):
    """The events of an execution as Server-Sent Events.

    The first and the last event are `ExecutionEvent`s. Each change of a step is a `StepEvent`, whose id a client sends
    to continue after a reconnect.
    """

    media_type = "text/event-stream"

    def __init__(
        self, sessions: SessionSource, shutdown: Shutdown, execution_id: UUID, last_event_id: str | None
    ) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["Content-Length"]
        self._sessions = sessions
        self._shutdown = shutdown
        self._execution_id = execution_id
        self._position = StepPosition(_sequence(last_event_id), MAX_ID)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with Poller(receive, self._shutdown, 0.1, 0.5, MAX_STREAM_SECONDS) as poller:
            async for chunk in self._chunks(poller):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self, poller: Poller) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        yield format_sse_event(retry=RECONNECT_MS)
        sent_at: float | None = None
        while True:
            execution, steps = await self._poll()
            if execution is None:
                return
            if sent_at is None:
                yield _event("execution", execution)
            for event in self._step_events(steps):
                yield event
            if sent_at is None or steps:
                sent_at = clock()
                poller.reset_interval()
            elif clock() - sent_at >= KEEPALIVE_SECONDS:
                yield KEEPALIVE_COMMENT
                sent_at = clock()
            if len(steps) == STEP_BATCH_SIZE:
                continue
            if execution.status is not ExecutionStatus.RUNNING:
                yield _event("execution", execution, END_EVENT_ID)
                return
            if not await poller.wait():
                return

    async def _poll(self) -> tuple[ExecutionOutline | None, Sequence[Any]]:
        """The execution and its changed steps, read in this order, so that an ended execution has all its steps.

        The execution is null if it was deleted or could not be read.
        """
        try:
            async with self._sessions.reading() as session:
                execution = await read_outline(session, self._execution_id)
                steps = await read_step_changes(session, self._execution_id, self._position, STEP_BATCH_SIZE)
        except Exception as error:
            # The stream ends. The client reconnects, and gets an error response if the database is still unavailable.
            log.warning("execution poll failed", error=type(error).__name__)
            return None, ()
        return execution and ExecutionOutline.model_validate(execution), steps

    def _step_events(self, steps: Sequence[Any]) -> list[bytes]:
        """The events of changed steps.

        Steps that changed together have the same sequence number. Only the last of their events has it as its id;
        otherwise a client that reconnects could miss the others.
        """
        events = []
        for step, following in zip_longest(steps, steps[1:]):
            self._position = StepPosition(step.sequence, step.id)
            is_last = following.sequence != step.sequence if following else len(steps) < STEP_BATCH_SIZE
            events.append(_event("step", StepOutline.model_validate(step), str(step.sequence) if is_last else None))
        return events


def _event(name: str, body: ExecutionOutline | StepOutline, id: str | None = None) -> bytes:
    return format_sse_event(event=name, data_str=body.model_dump_json(by_alias=True), id=id)


def _sequence(last_event_id: str | None) -> int:
    """The sequence number in an event's id. With any other id, the stream starts at the first step."""
    if last_event_id is None or not (last_event_id.isascii() and last_event_id.isdigit()):
        return BEFORE_FIRST_SEQUENCE
    return min(int(last_event_id[:20]), MAX_SEQUENCE)
