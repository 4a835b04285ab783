"""ASGI middleware: request ids, the request log, security headers, body limits and unexpected errors."""

from __future__ import annotations

import asyncio
import random
import re
import time
from contextlib import AbstractContextManager, nullcontext

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bloxserver.api.addresses import client_address
from bloxserver.api.errors import unexpected_error_response
from bloxserver.api.hosts import PROBES
from bloxserver.api.openapi import AUTHENTICATED_PREFIX
from bloxserver.models.database import read_only_request
from bloxserver.observability import metrics, tracing
from bloxserver.observability.tracing import NO_SPAN, Span
from bloxserver.settings import get_settings

log = structlog.stdlib.get_logger("bloxserver.request")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
READING_METHODS = {"GET", "HEAD", "OPTIONS"}
DRAIN_FACTOR = 16
"""A body that is too large is read and discarded up to this multiple of the limit. Then the connection is closed."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
HSTS = "max-age=31536000"


def _random_id() -> str:
    """Return 32 hexadecimal digits.

    The identifier is no secret. Random bytes of the operating system would release the interpreter to another thread,
    for which a busy server on SQLite waits.
    """
    return f"{random.getrandbits(128):032x}"


class RequestContext:
    """The outermost middleware. Sets the request id and the security headers, and logs each request once."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client_id = Headers(scope=scope).get("x-request-id", "")
        request_id = client_id if REQUEST_ID.fullmatch(client_id) else _random_id()
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        read_only = read_only_request.set(scope["method"] in READING_METHODS)
        with _span(scope) as span:
            try:
                await self._answer(scope, receive, send, request_id, span)
            finally:
                read_only_request.reset(read_only)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str, span: Span) -> None:
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if get_settings().uses_https:
                    headers["Strict-Transport-Security"] = HSTS
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            route = route_template(scope)
            method = scope["method"] if scope["method"] in METHODS else "other"
            _count(method, route, status, seconds)
            _describe(span, method, route, status)
            log.info(
                "request",
                method=scope["method"],
                route=route,
                status=status,
                duration_ms=round(seconds * 1000, 1),
                client=client_address(scope),
            )


def _span(scope: Scope) -> AbstractContextManager[Span]:
    """A span for the request, in the trace of its `traceparent` if it has one. Probes and scrapes get no span."""
    if scope["path"].startswith(PROBES):
        return nullcontext(NO_SPAN)
    traceparent = tracing.read_traceparent(Headers(scope=scope).getlist(tracing.HEADER))
    return tracing.continue_trace("HTTP", traceparent, {}, "SERVER")


def _describe(span: Span, method: str, route: str | None, status: int) -> None:
    """Set the attributes of the request's span. The path is not one of them, because it can contain a token."""
    attributes: dict[str, str | int] = {"http.request.method": method}
    if route is not None:
        attributes["http.route"] = route
    if status:
        attributes["http.response.status_code"] = status
    span.set_attributes(attributes, name=f"{method} {route}" if route else method)
    if status >= 500:
        span.fail(str(status))


def _count(method: str, route: str | None, status: int, seconds: float) -> None:
    """Count the request. Unmatched paths share a label, because clients could create any number of them."""
    route = route or "unmatched"
    metrics.REQUESTS.labels(method, route, status or "aborted").inc()
    metrics.REQUEST_SECONDS.labels(method, route).observe(seconds)


def route_template(scope: Scope) -> str | None:
    """The path of the matched route with the names of its parameters; None if no route matched.

    Logs and metrics use it because the path itself can contain a token.
    """
    path: str | None = getattr(scope.get("route"), "path", None)
    if path is not None and scope["path"].startswith(f"{AUTHENTICATED_PREFIX}/"):
        return AUTHENTICATED_PREFIX + path
    return path


class BodyLimit:
    """Limits the size of request bodies, and the time in which they must arrive."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        settings = get_settings()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + settings.body_timeout_seconds
        received = 0
        complete = False

        async def next_message() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # only http.disconnect can follow
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The request body did not arrive in time", {"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "The client disconnected before the request body was complete")
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            return message

        async def limited_receive() -> Message:
            message = await next_message()
            if received > settings.max_body_bytes:
                # A client that is still sending would not read the response: discard the rest, up to a limit.
                while not complete and received < DRAIN_FACTOR * settings.max_body_bytes:
                    await next_message()
                text = f"Request body is larger than {settings.max_body_bytes} bytes"
                raise HTTPException(413, text, None if complete else {"Connection": "close"})
            return message

        await self.app(scope, limited_receive, send)


class ErrorMiddleware:
    """Responds to unexpected exceptions. Inside the CORS middleware, so that these responses have CORS headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def tracking_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, tracking_send)
        except Exception as error:
            response = unexpected_error_response(Request(scope), error)
            if started:
                raise
            await response(scope, receive, send)
