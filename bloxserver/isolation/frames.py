"""The messages between a process and its task processes, over a stream socket."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum

from bloxserver.isolation.limits import TaskLimits

_LENGTHS = struct.Struct("!II")
_RESULT = struct.Struct("!BBdI")
MAX_RESPONSE_BYTES = 16 * 1024 * 1024


class Status(IntEnum):
    """How a task ended."""

    DONE = 0
    FAILED = 1
    """It raised an exception; the body is the name of the exception's type."""
    OUT_OF_MEMORY = 2
    """It needs more memory than allowed, or its response is too large."""


@dataclass(frozen=True, slots=True)
class Response:
    status: Status
    is_last: bool
    """Whether the process ends after this response."""
    cpu_seconds: float
    body: bytes


def send_request(connection: socket.socket, function: str, limits: TaskLimits, body: bytes) -> None:
    header = json.dumps({"function": function, "limits": asdict(limits)}).encode()
    _send(connection, _LENGTHS.pack(len(header), len(body)) + header, body)


def receive_request(connection: socket.socket) -> tuple[str, TaskLimits, bytes] | None:
    """Return the next request; None if the other side has closed the connection."""
    try:
        header_length, length = _LENGTHS.unpack(receive(connection, _LENGTHS.size))
        header = json.loads(receive(connection, header_length))
        return header["function"], TaskLimits(**header["limits"]), receive(connection, length)
    except (EOFError, ConnectionError):
        return None


def send_response(connection: socket.socket, response: Response) -> None:
    result = _RESULT.pack(response.status, response.is_last, response.cpu_seconds, len(response.body))
    _send(connection, result, response.body)


def _send(connection: socket.socket, header: bytes, body: bytes) -> None:
    connection.sendall(header)
    if body:  # after an empty one, the other side may have answered and ended already: then the call would fail
        connection.sendall(body)


def receive_response(connection: socket.socket) -> Response:
    """Raises `EOFError` or `OSError` if the process has ended, and `TimeoutError` after the socket's timeout."""
    status, is_last, cpu_seconds, length = _RESULT.unpack(receive(connection, _RESULT.size))
    if length > MAX_RESPONSE_BYTES:
        raise EOFError
    return Response(Status(status), bool(is_last), cpu_seconds, receive(connection, length))


def receive(connection: socket.socket, length: int) -> bytes:
    """Return exactly this number of bytes. Raises `EOFError` if the other side closes the connection before."""
    received = bytearray(length)
    view, position = memoryview(received), 0
    while position < length:
        count = connection.recv_into(view[position:])
        if count == 0:
            raise EOFError
        position += count
    return bytes(received)
