"""The messages between a process and its task processes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from bloxserver.isolation.frames import (
    MAX_RESPONSE_BYTES,
    Response,
    Status,
    receive_request,
    receive_response,
    send_request,
    send_response,
)
from bloxserver.isolation.limits import TaskLimits

Connections = tuple[socket.socket, socket.socket]


@pytest.fixture
def connections() -> Iterator[Connections]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_requests_and_responses_are_received_as_sent(connections: Connections) -> None:
    one, other = connections
    limits = TaskLimits(cpu_seconds=0.5, seconds=1.5, memory_bytes=7)
    send_request(one, "module:function", limits, b"\0body")
    assert receive_request(other) == ("module:function", limits, b"\0body")
    response = Response(Status.FAILED, True, 0.25, b"")
    send_response(other, response)
    assert receive_response(one) == response


def test_nothing_is_sent_after_the_header_of_an_empty_body() -> None:
    """The receiver may answer and end as soon as it has the header. Each call that sends is one datagram here."""
    one, other = socket.socketpair(type=socket.SOCK_DGRAM)
    with one, other:
        other.setblocking(False)
        send_request(one, "module:function", TaskLimits(), b"")
        send_response(one, Response(Status.DONE, True, 0.25, b""))
        assert [len(other.recv(1_000)) > 0 for _ in range(2)] == [True, True]
        with pytest.raises(BlockingIOError):
            other.recv(1_000)


def test_closed_connection_is_the_end_of_requests(connections: Connections) -> None:
    one, other = connections
    one.sendall(b"\0\0")
    one.close()
    assert receive_request(other) is None


def test_response_that_ends_early_is_an_error(connections: Connections) -> None:
    one, other = connections
    send_response(other, Response(Status.DONE, False, 0, bytes(100)))
    other.close()
    assert len(receive_response(one).body) == 100
    with pytest.raises(EOFError):
        receive_response(one)


def test_response_over_the_limit_is_not_read(connections: Connections) -> None:
    one, other = connections
    other.sendall(b"\0\0" + bytes(8) + (MAX_RESPONSE_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(EOFError):
        receive_response(one)
