"""Accepting and refusing connections, with real connections on loopback."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from bloxserver.api import listener as listener_module
from bloxserver.api.listener import MAX_ACCEPTED, MAX_REFUSED, Listener, bound_sockets

REFUSAL = b"refused"


class Greeting(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.write(b"hello")
        transport.close()


class Server:
    """A listener whose refused addresses a test chooses."""

    def __init__(self, bound: list[socket.socket]) -> None:
        self.refused: set[str] = set()
        self.asked: list[str] = []
        self.listener = Listener(bound, Greeting, self._refusal, 2048)
        self.address = bound[0].getsockname()

    def _refusal(self, address: str) -> bytes | None:
        self.asked.append(address)
        return REFUSAL if address in self.refused else None

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(self.address, source_address=(source, 0))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(await bound_sockets("127.0.0.1", 0))
    yield server
    server.listener.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def received(connection: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(sock=connection)
    async with asyncio.timeout(10):
        data = await reader.read()
    writer.close()
    return data


async def test_connections_are_accepted_on_all_addresses_of_a_host() -> None:
    server = Server(await bound_sockets("localhost", 0))
    for bound in server.listener.sockets:
        assert await received(socket.create_connection(bound.getsockname()[:2])) == b"hello"
    server.listener.close()


async def test_refused_client_can_read_the_response_although_it_has_sent_a_request(server: Server) -> None:
    """The system resets a connection that is closed with unread bytes."""
    server.refused.add("127.0.0.2")
    connection = server.connect("127.0.0.2")
    connection.sendall(b"x" * 1000)
    assert await received(connection) == REFUSAL
    assert await received(server.connect()) == b"hello"


async def test_refused_client_that_has_left_is_ignored(server: Server) -> None:
    server.refused.add("127.0.0.2")
    server.connect("127.0.0.2").close()
    assert await received(server.connect()) == b"hello"


@pytest.mark.parametrize(("source", "maximum"), [("127.0.0.1", MAX_ACCEPTED), ("127.0.0.2", MAX_REFUSED)])
async def test_connections_of_one_iteration_of_the_loop_are_limited(
    server: Server, stack: ExitStack, source: str, maximum: int
) -> None:
    server.refused.add("127.0.0.2")
    for _ in range(2 * maximum):
        stack.enter_context(server.connect(source))
    counts = [0]
    async with asyncio.timeout(10):
        while counts[-1] < 2 * maximum:
            await asyncio.sleep(0)
            counts.append(len(server.asked))
    assert max(later - earlier for earlier, later in pairwise(counts)) == maximum


async def test_process_without_free_files_accepts_again_later(
    server: Server, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "PAUSE_SECONDS", 0)
    connection = server.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (connection.fileno(), hard))
    with capture_logs() as logs:
        async with asyncio.timeout(10):
            while not logs:  # noqa: ASYNC110
                await asyncio.sleep(0)
    assert (logs[0]["event"], logs[0]["error"]) == ("cannot accept connections", "EMFILE")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await received(connection) == b"hello"


async def test_drained_listener_serves_connections_that_wait_and_refuses_new_ones(server: Server) -> None:
    connection = server.connect()
    await server.listener.drain()
    assert await received(connection) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        server.connect()


async def test_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as caught:  # noqa: PT011
        await bound_sockets("127.0.0.1", taken.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE
