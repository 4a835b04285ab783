"""Limits of the number of connections, in total and for each address."""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from typing import Protocol

import structlog

from bloxserver.api.addresses import address_key, parse_address
from bloxserver.observability import metrics
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver")

RESERVED_FILES = 512
"""Open files of a process that are not connections of clients: database, outgoing requests, files."""
MIN_CONNECTIONS = 16
MAX_CHUNKS = 50_000
MIN_CHUNK_BYTES = 64
"""The mean size of chunks that allows more than `MAX_CHUNKS`, if `MAX_BODY_BYTES` does."""


class Connection(Protocol):
    def drop(self, reason: str) -> None:
        """Close the connection at once, without a response."""


class ConnectionLimits:
    """The connections of one server, and their limits."""

    def __init__(self, settings: Settings, max_connections: int) -> None:
        self.header_timeout = settings.header_timeout_seconds
        self.write_timeout = settings.write_timeout_seconds
        self.max_chunks = max(MAX_CHUNKS, settings.max_body_bytes // MIN_CHUNK_BYTES)
        self.max_connections = max_connections
        self._per_address = settings.max_connections_per_address
        self._proxies = settings.forwarded_allow_ips
        self._open: dict[Connection, str] = {}
        self._by_address: dict[str, int] = {}
        self._waiting: dict[Connection, None] = {}

    def admit(self, connection: Connection, host: str | None) -> HTTPStatus | None:
        """Count a new connection, or return the status with which to refuse it.

        If the server has its maximum of connections, the one that has waited the longest is closed.
        """
        refused = self._refused(host)
        if refused is not None:
            return refused
        key = address_key(host)
        if len(self._open) >= self.max_connections:
            oldest = next(iter(self._waiting))
            self.release(oldest)
            oldest.drop("evicted")
        self._open[connection] = key
        self._by_address[key] = self._by_address.get(key, 0) + 1
        self._waiting[connection] = None
        return None

    def refusal(self, host: str | None) -> bytes | None:
        """The response with which to refuse a new connection; None if it can be accepted."""
        refused = self._refused(host)
        if refused is None:
            return None
        metrics.CONNECTIONS_CLOSED.labels("refused").inc()
        return REFUSALS[refused]

    def _refused(self, host: str | None) -> HTTPStatus | None:
        if self._by_address.get(address_key(host), 0) >= self._per_address and not self._is_proxy(host):
            return HTTPStatus.TOO_MANY_REQUESTS
        if len(self._open) >= self.max_connections and not self._waiting:
            return HTTPStatus.SERVICE_UNAVAILABLE
        return None

    def release(self, connection: Connection) -> None:
        """Stop counting a connection. Does nothing if it is not counted."""
        key = self._open.pop(connection, None)
        if key is None:
            return
        self._waiting.pop(connection, None)
        self._by_address[key] -= 1
        if not self._by_address[key]:
            del self._by_address[key]

    def set_waiting(self, connection: Connection, waiting: bool) -> None:
        """Record whether the connection waits for a complete request."""
        if not waiting:
            self._waiting.pop(connection, None)
        elif connection in self._open:
            self._waiting[connection] = None

    def _is_proxy(self, host: str | None) -> bool:
        address = parse_address(host)
        return address is not None and any(address in network for network in self._proxies)


def connection_limits(settings: Settings) -> ConnectionLimits:
    """The limits of one server. The limit of open files may lower them."""
    return ConnectionLimits(settings, _available_connections(settings.max_connections))


def _available_connections(wanted: int) -> int:
    """The connections that the limit of open files allows, at most `wanted`. Raises that limit as far as possible."""
    available = _open_files(wanted + RESERVED_FILES) - RESERVED_FILES
    if available >= wanted:
        return wanted
    available = max(MIN_CONNECTIONS, available)
    log.warning("the limit of open files (ulimit -n) reduces MAX_CONNECTIONS", connections=available)
    return available


def _open_files(wanted: int) -> int:
    """Raise the process's limit of open files to `wanted`, or as far as the system allows. Returns the limit."""
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def error_response(status: HTTPStatus, message: str) -> bytes:
    """A complete response: a problem as in `api.errors`, but without a request id."""
    code = "payload_too_large" if status == 413 else status.name.lower()
    problem = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": message,
        "code": code,
        "message": message,
        "details": None,
    }
    body = json.dumps(problem).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\nretry-after: 5\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


TOO_MANY = "The server has too many connections"
REFUSALS = {
    status: error_response(status, TOO_MANY)
    for status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
}
