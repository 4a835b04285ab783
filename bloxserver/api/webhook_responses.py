"""Responses to webhooks whose triggers have `respond`: the output of the execution, or the response of a listener.

A waiting request holds no database connection. If too many responses of the owner are open, or the time has elapsed,
the response is the one of a webhook that does not wait: the execution was accepted, and must not be started again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack

import structlog
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from bloxserver.api.errors import problem
from bloxserver.api.idempotency import REPLAYED
from bloxserver.api.rendering import PART_CHARACTERS, LargeResponse
from bloxserver.api.session_source import SessionSource
from bloxserver.api.stream_slots import StreamSlots
from bloxserver.api.streaming import Waiter
from bloxserver.api.watching import ExecutionWatcher, Watch
from bloxserver.errors import LimitReached, Unavailable
from bloxserver.event_loop import in_parts
from bloxserver.models.enums import ExecutionStatus
from bloxserver.queries.webhook_responses import Ending, read_output, read_response
from bloxserver.services.webhook_responses import Respond, ResponseWait
from bloxserver.services.webhooks import AcceptedWebhook

log = structlog.stdlib.get_logger("bloxserver.request")

ACCEPTED = "Webhook received and execution started"
FAILURES = {
    ExecutionStatus.ERROR: ("execution_failed", "The execution has failed"),
    ExecutionStatus.TIMEOUT: ("execution_timed_out", "The execution has reached its time limit"),
    ExecutionStatus.CANCELLED: ("execution_cancelled", "The execution was cancelled"),
}
"""The codes and messages of responses to executions that ended without success."""
FAILURE_STATUS = 422
"""Not a 5xx, after which senders send the request again and start another execution."""
UNTRUSTED = {"Content-Security-Policy": "sandbox; frame-ancestors 'none'", "X-Content-Type-Options": "nosniff"}
"""The flow chose the body. A browser must not run it as a page of the API."""


def accepted_response(accepted: AcceptedWebhook) -> Response:
    """The response to a webhook that does not wait."""
    body = f'{{"status":"accepted","executionId":"{accepted.execution_id}","message":"{ACCEPTED}"}}'
    return Response(body, headers=_headers_of(accepted), media_type="application/json")


def _headers_of(accepted: AcceptedWebhook) -> Mapping[str, str] | None:
    return REPLAYED if accepted.is_repeated else None


class WebhookResponse(Response):
    """The response to a webhook whose trigger has `respond`."""

    def __init__(self, request: Request, accepted: AcceptedWebhook, wait: ResponseWait) -> None:
        super().__init__()
        state = request.app.state
        self._request = request
        self._accepted = accepted
        self._wait = wait
        self._slots: StreamSlots = state.stream_slots
        self._watcher: ExecutionWatcher = state.watcher
        self._watch = Watch(
            SessionSource(request),
            state.shutdown,
            accepted.execution_id,
            with_steps=wait.until is Respond.LISTENER,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._slots.take(self._wait.user_id, self._wait.plan))
            except (LimitReached, Unavailable):
                response = None
            else:
                response = await self._awaited(receive)
            await (response or accepted_response(self._accepted))(scope, receive, send)

    async def _awaited(self, receive: Receive) -> Response | None:
        """The response that the execution gives; None if it gives none in time."""
        async with Waiter(receive, self._watcher, self._watch, self._wait.seconds) as waiter:
            while await waiter.wait():
                ending, is_deleted = await self._read()
                if is_deleted:
                    return None
                if ending is None:
                    continue
                if ending.answer is not None and self._wait.until is Respond.LISTENER:
                    return await self._of_listener(ending.answer)
                if ending.status is ExecutionStatus.SUCCESS:
                    return await self._of_output(ending.answer) if self._wait.until is Respond.END else None
                if ending.status is not ExecutionStatus.RUNNING:
                    return self._failure(ending)
        return None

    async def _read(self) -> tuple[Ending | None, bool]:
        """The state of the execution, or None if it cannot be read now; and whether it was deleted."""
        execution_id = self._accepted.execution_id
        try:
            async with self._watch.sessions.reading() as session:
                read = read_output if self._wait.until is Respond.END else read_response
                ending = await read(session, execution_id)
        except Exception as error:
            # An error response would mean that the execution was not accepted.
            log.warning("execution poll failed", error=type(error).__name__)
            self._watch.forget()
            return None, False
        return ending, ending is None

    async def _of_output(self, output: str | None) -> Response:
        return await _with_body(200, {"Content-Type": "application/json", **self._own_headers()}, output or "null")

    async def _of_listener(self, answer: str) -> Response:
        given = json.loads(answer)
        return await _with_body(given["status"], {**given["headers"], **self._own_headers()}, given["body"])

    def _failure(self, ending: Ending) -> Response:
        code, message = FAILURES[ending.status]
        detail = f"{message}: {ending.error}" if ending.error else message
        details = {"executionId": str(self._accepted.execution_id)}
        headers = _headers_of(self._accepted)
        return problem(self._request, FAILURE_STATUS, code, detail, details, headers)

    def _own_headers(self) -> dict[str, str]:
        return {**UNTRUSTED, **(_headers_of(self._accepted) or {})}


async def _with_body(status: int, headers: Mapping[str, str], text: str) -> Response:
    """A response with a body that may be large."""
    if len(text) <= PART_CHARACTERS:
        return Response(text, status, headers)
    parts = [part.encode() async for part in in_parts(text, PART_CHARACTERS)]
    return LargeResponse(Response(status_code=status, headers=headers), parts)
