"""What surrounds every request, as plain ASGI: its id, its log line, its headers, and a net under every exception."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from contextlib import AbstractContextManager, nullcontext

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bloxserver.api.errors import unexpected_error_response
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
"""A body that is too large is read to its end up to this many times the limit, then the connection is closed."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
PROBES = ("/health", "/metrics")
PAGES = ("/docs", "/redoc")
"""Pages for people, which load scripts: they keep their own content policy."""


class RequestContext:
    """Outermost: gives the request an id, and writes one line when it has been answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
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
                    if not (name == "Content-Security-Policy" and scope["path"].startswith(PAGES)):
                        headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            route = route_template(scope)
            method = scope["method"] if scope["method"] in METHODS else "other"
            _count(method, route, status, seconds)
            _tell(span, method, route, status)
            log.info(
                "request", method=scope["method"], route=route, status=status, duration_ms=round(seconds * 1000, 1)
            )


def _span(scope: Scope) -> AbstractContextManager[Span]:
    """A span for the request, of the sender's trace if he names one; probes and scrapes are not worth one."""
    if scope["path"].startswith(PROBES):
        return nullcontext(NO_SPAN)
    traceparent = tracing.read_traceparent(Headers(scope=scope).getlist(tracing.HEADER))
    return tracing.continue_trace("HTTP", traceparent, {}, "SERVER")


def _tell(span: Span, method: str, route: str | None, status: int) -> None:
    """The path itself stays untold, for it may hold a token."""
    told: dict[str, str | int] = {"http.request.method": method}
    if route is not None:
        told["http.route"] = route
    if status:
        told["http.response.status_code"] = status
    span.set_attributes(told, name=f"{method} {route}" if route else method)
    if status >= 500:
        span.fail(str(status))


def _count(method: str, route: str | None, status: int, seconds: float) -> None:
    """For the metrics: what no route knows has one label, however many paths clients invent."""
    route = route or "unmatched"
    metrics.REQUESTS.labels(method, route, status or "aborted").inc()
    metrics.REQUEST_SECONDS.labels(method, route).observe(seconds)


def route_template(scope: Scope) -> str | None:
    """The route's path with its parameters' names, for a path itself holds tokens; None where no route matched."""
    path: str | None = getattr(scope.get("route"), "path", None)
    if path is not None and scope["path"].startswith(f"{AUTHENTICATED_PREFIX}/"):
        return AUTHENTICATED_PREFIX + path
    return path


class BodyLimit:
    """Bounds what a request may bring and how long that may take, for every route and every encoding."""

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
                return await receive()  # only the client's leaving is still to come
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The request body did not arrive in time", {"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "The client went away before its request body had ended")
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            return message

        async def limited_receive() -> Message:
            message = await next_message()
            if received > settings.max_body_bytes:
                # A client that still writes would miss the answer: the rest is read and thrown away, within reason.
                while not complete and received < DRAIN_FACTOR * settings.max_body_bytes:
                    await next_message()
                text = f"Request body is larger than {settings.max_body_bytes} bytes"
                raise HTTPException(413, text, None if complete else {"Connection": "close"})
            return message

        await self.app(scope, limited_receive, send)


class ErrorMiddleware:
    """Inside CORS, so that even the answer to a bug carries its headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        except Exception as error:
            response = unexpected_error_response(Request(scope), error)
            if begun:
                raise
            await response(scope, receive, send)
