"""An HTTP protocol with timeouts and limits, which uvicorn does not have.

A connection waits for a request until it has received a complete one. While it waits, it can be closed in favour of a
new connection. From the complete request to its response, nothing else of the connection is parsed: uvicorn would make
objects for all requests that a client sends without waiting for responses.

The chunks of a body are parsed in turns of the event loop. After each turn, the next one waits until the application
has read the body that was parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bloxserver.api.connection_limits import TOO_MANY, ConnectionLimits, error_response
from bloxserver.observability import metrics

MAX_HEAD_BYTES = 64 * 1024
"""Bytes of a request's head, and of the trailer or the chunk extensions of a body, beyond which it is refused."""
MAX_HEADERS = 100
"""Headers of a request, with those of the trailer."""
MAX_CHUNKS_PER_TURN = 1_000
"""Chunks after which the event loop gets a turn. A chunk takes 0.5 µs, however small it is."""
END_OF_HEAD = b"\r\n\r\n"
MIN_HEAD_BYTES = 14
"""Bytes before the end of the shortest head."""
MIN_PIECE_BYTES = 512
"""The shortest part of a chunked body that is parsed at once. The parser does not tell where the body ends."""
MAX_PIECE_BYTES = 4 * 1024
"""The longest part of a head or a chunked body that is parsed at once."""
PROGRESS_BYTES = 64 * 1024
"""Bytes of a response that a client must read in each `WRITE_TIMEOUT_SECONDS`, or all that are left."""


class _Flow(FlowControl):
    """Does not resume reading while the connection has unread data. Calls `on_resume` instead."""

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self.held = False
        self._on_resume = on_resume

    def hold(self) -> None:
        self.held = True
        self.pause_reading()

    def resume_reading(self) -> None:
        if self.held:
            self._on_resume()
        else:
            super().resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with timeouts and limits."""

    def __init__(self, *, limits: ConnectionLimits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._dropped = False
        self._unparsed = 0
        """Bytes received since the last complete head or piece of a body."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unwritten = 0
        self._unread = bytearray()
        """Received and not parsed yet."""
        self._next_turn: asyncio.Handle | None = None
        self._body_left: int | None = 0
        """Bytes of the request's body that are missing; None if it is chunked."""
        self._chunks = self._last_chunk = 0
        """The chunks that were parsed on this connection, and the number up to which the current body may have them."""
        self._invalid: _Invalid | None = None
        """Why a callback has made the parser fail."""

    @property
    def _responding(self) -> bool:
        """Whether a response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _must_respond(self) -> bool:
        """Whether a complete request has no complete response."""
        return self._responding and not self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport, self._parse_later)
        refused = self._limits.admit(self, self.client[0] if self.client else None)
        if refused is not None:
            self._refuse(refused, TOO_MANY, "refused")
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.release(self)
        self._stop_head_timer()
        self._stop_write_timer()
        if self._next_turn is not None:
            self._next_turn.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._dropped:
            return
        if self._unread:  # it was received before reading was paused
            self._unread += data
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Parse up to the end of a request, or as many chunks as a turn has. The rest waits in `_unread`."""
        position, last_of_turn = 0, self._chunks + MAX_CHUNKS_PER_TURN
        while position < len(data) and not self.transport.is_closing():
            if self._must_respond or self._chunks >= last_of_turn:
                self._unread += data[position:]
                self.flow.hold()
                if not self._responding:  # else the application reads the chunks, and resumes
                    self._parse_later()
                return
            end = self._end_of_piece(data, position)
            self._unparsed += end - position
            super().data_received(data[position:end])
            position = end
            self._check_head()

    def _parse_later(self) -> None:
        """Parse what is unread in the next turn of the event loop, unless a request must get its response before."""
        if self._next_turn is None and not self._must_respond:
            self._next_turn = self.loop.call_soon(self._parse_unread)

    def _parse_unread(self) -> None:
        self._next_turn = None
        if self.transport.is_closing():
            return
        data = bytes(self._unread)
        self._unread.clear()
        self.flow.held = False
        self._parse(data)
        body_fits = not self._responding or len(self.cycle.body) <= HIGH_WATER_LIMIT
        if body_fits and not self.flow.held:
            self.flow.resume_reading()

    def _end_of_piece(self, data: bytes, start: int) -> int:
        """Return a position at most a few requests behind `start`, mostly the end of a head or of a body."""
        if self._body_left:
            return min(len(data), start + self._body_left)
        shortest = MIN_HEAD_BYTES if self._body_left == 0 else MIN_PIECE_BYTES
        longest = min(len(data), start + MAX_PIECE_BYTES)
        end = data.find(END_OF_HEAD, start + shortest, longest)
        return longest if end < 0 else end + len(END_OF_HEAD)

    def _check_head(self) -> None:
        # uvicorn has stopped its keep-alive timer. A complete head and a piece of a body have set `_unparsed` to 0.
        if (self._unparsed or not self._responding) and not self.transport.is_closing():
            if self._unparsed > MAX_HEAD_BYTES:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                self._refuse(status, "The head of the request is too large", "head_too_large")
            elif self._head_timer is None:
                self._start_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._invalid = _Invalid(status, f"The request has more than {MAX_HEADERS} headers", "head_too_large")
            raise self._invalid
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        self._stop_head_timer()
        self._body_left = _body_length(self.headers)
        self._last_chunk = self._chunks + self._limits.max_chunks + 1  # the last one is empty
        super().on_headers_complete()
        self.headers = self.headers.copy()  # the headers of a trailer are not headers of the request

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self._last_chunk:
            message = f"The body of the request has more than {self._limits.max_chunks} chunks"
            self._invalid = _Invalid(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, "too_many_chunks")
            raise self._invalid

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        if self._body_left is not None:
            self._body_left -= len(body)
        if self._responding:
            self._stop_head_timer()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        self._body_left = 0
        self._stop_head_timer()
        super().on_message_complete()
        if self._responding:
            self._limits.set_waiting(self, False)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn if the parser fails, also because a callback has raised an exception."""
        invalid = self._invalid or _Invalid(HTTPStatus.BAD_REQUEST, msg, "invalid_request")
        self._refuse(invalid.status, invalid.message, invalid.reason)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._responding:
            self._limits.set_waiting(self, True)
        if self._write_timer is None:
            self._start_write_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._start_write_timer()

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()
        if not self._responding:
            self._start_write_timer()

    def drop(self, reason: str) -> None:
        """Close the connection at once, without a response."""
        metrics.CONNECTIONS_CLOSED.labels(reason).inc()
        self._dropped = True
        self.transport.abort()

    def _refuse(self, status: HTTPStatus, message: str, reason: str) -> None:
        """Close the connection after an error response; without one if the client expects another response."""
        if self._must_respond or (self._responding and self.cycle.response_started):
            self.drop(reason)
            return
        metrics.CONNECTIONS_CLOSED.labels(reason).inc()
        self._dropped = True
        if self._responding:
            self.cycle.disconnected = True  # the application's response is discarded
        if self._responding or self._body_left == 0:  # else the request has its response
            self.transport.write(error_response(status, message))
        self.transport.close()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.header_timeout, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._unparsed:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The head of the request did not arrive in time", "head_timeout")
        else:
            self.transport.close()  # an unused connection, or the rest of a body that nothing reads

    def _start_write_timer(self) -> None:
        self._unwritten = self.transport.get_write_buffer_size()
        if self._unwritten:
            self._write_timer = self.loop.call_later(self._limits.write_timeout, self._check_progress)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _check_progress(self) -> None:
        """Drop the connection if the client has read too little since the timer started."""
        self._write_timer = None
        left = self.transport.get_write_buffer_size()
        if left and self._unwritten - left < PROGRESS_BYTES:
            self.drop("write_timeout")
        else:
            self._start_write_timer()


class _Invalid(Exception):
    """A request that is refused while it is parsed."""

    def __init__(self, status: HTTPStatus, message: str, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason


def _body_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """The length of a request's body; None if it is chunked. The parser refuses heads whose headers disagree."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length" and value.isdigit():
            length = int(value)
    return length


def limited_protocol(limits: ConnectionLimits) -> Any:
    """The `http` argument of `uvicorn.Config`: the protocol class with the limits of one server."""
    return partial(LimitedProtocol, limits=limits)
