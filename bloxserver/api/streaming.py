"""Answers that take their time. They are sent after the request's own session has ended, and look at the database
by short ones.
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
from bloxserver.api.schemas import AwaitedExecution, Execution
from bloxserver.api.schemas.executions import ExecutionOutline, StepOutline
from bloxserver.api.shutdown import Shutdown
from bloxserver.errors import NotFound
from bloxserver.models.enums import ExecutionStatus
from bloxserver.queries.executions import find_execution, read_outline, read_status
from bloxserver.queries.steps import StepPosition, read_step_changes

log = structlog.stdlib.get_logger("bloxserver.request")

END = "end"
"""The id of a stream's last event: who has seen it has seen all."""
STREAM_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
"""A proxy that compresses or buffers would deliver all events at the end."""
STREAM_SECONDS = 3600.0
"""A stream ends after this; its reader comes back and goes on."""
COMMENT_SECONDS = 15.0
"""Longest silence of a stream: proxies and dead clients are noticed by it."""
RECONNECT_MS = 1000
STEPS_PER_LOOK = 500
BEFORE_ALL = -1
MAX_ID = UUID(int=2**128 - 1)
MAX_SEQUENCE = 2**31 - 1


class Poller:
    """The pauses of a response between its reads of the database, each longer than the one before.

    They end after `seconds`, when the client disconnects, and when the server is asked to stop.
    """

    def __init__(self, receive: Receive, shutdown: Shutdown, shortest: float, longest: float, seconds: float) -> None:
        self._receive = receive
        self._shutdown = shutdown
        self._shortest, self._longest = shortest, longest
        self._next = shortest
        self._deadline = asyncio.get_running_loop().time() + seconds

    async def __aenter__(self) -> Self:
        self._leaving = asyncio.create_task(self._until_client_leaves())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._leaving.cancel()
        with suppress(asyncio.CancelledError):
            await self._leaving

    async def _until_client_leaves(self) -> None:
        with suppress(Exception):
            while (await self._receive())["type"] != "http.disconnect":
                pass

    def shorten(self) -> None:
        """Make the next pause the shortest again."""
        self._next = self._shortest

    async def pause(self) -> bool:
        """Wait; returns False, at once, if the pauses have ended."""
        left = self._deadline - asyncio.get_running_loop().time()
        if left > 0 and not self._is_over():
            await asyncio.wait({self._leaving}, timeout=min(self._next, left))
            self._next = min(self._next * 1.5, self._longest)
        return left > 0 and not self._is_over()

    def _is_over(self) -> bool:
        return self._leaving.done() or self._shutdown.requested


class WaitingResponse(Response):
    """Answers when an accepted execution has ended, with it, or at the deadline with 202 and how it stood."""

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
        """`status_code` and `body` are for an execution that has ended."""
        super().__init__(status_code=status_code)
        self._sessions = sessions
        self._shutdown = shutdown
        self._accepted = accepted
        self._seconds = seconds
        self._body = body
        self._location = location

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = None
        async with Poller(receive, self._shutdown, 0.02, 0.25, self._seconds) as pauses:
            while ended is None and await pauses.pause():
                ended = await self._look()
        if ended is None:
            headers = {"Location": self._location} if self._location else None
            answer = _answer(AwaitedExecution, self._accepted, "Execution is still running")
            response = JSONResponse(answer, 202, headers)
        else:
            response = JSONResponse(_answer(self._body, ended, "Execution has ended"), self.status_code)
        await response(scope, receive, send)

    async def _look(self) -> Execution | None:
        """The execution if it has ended; raises `NotFound` where it was deleted."""
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
            # The execution was accepted, and an error would say that it was not.
            log.warning("cannot look at the execution", error=type(error).__name__)
            return None


def _answer(body: type[Execution], execution: Execution, message: str) -> dict[str, Any]:
    values = execution.model_dump() | {"execution_id": execution.id, "message": message}
    return body.model_validate(values).model_dump(mode="json", by_alias=True)


class EventStream(Response):
    """What happens in an execution, as Server-Sent Events: `execution` at the beginning and at the end, and `step`
    for each change of a step, by which a reader that comes back goes on.
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
        async with Poller(receive, self._shutdown, 0.1, 0.5, STREAM_SECONDS) as pauses:
            async for chunk in self._chunks(pauses):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self, pauses: Poller) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        yield format_sse_event(retry=RECONNECT_MS)
        spoken: float | None = None
        while True:
            execution, steps = await self._look()
            if execution is None:
                return
            if spoken is None:
                yield _event("execution", execution)
            for event in self._step_events(steps):
                yield event
            if spoken is None or steps:
                spoken = clock()
                pauses.shorten()
            elif clock() - spoken >= COMMENT_SECONDS:
                yield KEEPALIVE_COMMENT
                spoken = clock()
            if len(steps) == STEPS_PER_LOOK:
                continue
            if execution.status is not ExecutionStatus.RUNNING:
                yield _event("execution", execution, END)
                return
            if not await pauses.pause():
                return

    async def _look(self) -> tuple[ExecutionOutline | None, Sequence[Any]]:
        """The execution, and then its steps, so that the steps are complete where it has ended."""
        try:
            async with self._sessions.reading() as session:
                execution = await read_outline(session, self._execution_id)
                steps = await read_step_changes(session, self._execution_id, self._position, STEPS_PER_LOOK)
        except Exception as error:
            # The reader comes back, and is told then.
            log.warning("cannot look at the execution", error=type(error).__name__)
            return None, ()
        return execution and ExecutionOutline.model_validate(execution), steps

    def _step_events(self, steps: Sequence[Any]) -> list[bytes]:
        """Steps that changed together share a number: only the last of them bears it, or a reader that comes back
        would miss the others.
        """
        events = []
        for step, following in zip_longest(steps, steps[1:]):
            self._position = StepPosition(step.sequence, step.id)
            is_last = following.sequence != step.sequence if following else len(steps) < STEPS_PER_LOOK
            events.append(_event("step", StepOutline.model_validate(step), str(step.sequence) if is_last else None))
        return events


def _event(kind: str, body: ExecutionOutline | StepOutline, id: str | None = None) -> bytes:
    return format_sse_event(event=kind, data_str=body.model_dump_json(by_alias=True), id=id)


def _sequence(last_event_id: str | None) -> int:
    """The number in an event's id; who brings anything else begins at the beginning."""
    if last_event_id is None or not (last_event_id.isascii() and last_event_id.isdigit()):
        return BEFORE_ALL
    return min(int(last_event_id[:20]), MAX_SEQUENCE)
