"""Timeouts and limits of connections, with real connections on loopback."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import uvicorn

from bloxserver.api.connections import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MIN_CONNECTIONS,
    MIN_PIECE_BYTES,
    RESERVED_FILES,
    LimitedProtocol,
    connection_limits,
    limited_protocol,
)
from bloxserver.api.server import serving as serving_api
from bloxserver.observability.metrics import REGISTRY
from bloxserver.settings import Settings
from tests.clerk import override_settings
from tests.server import head, status_of

Application = Callable[[Any, Any, Any], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

REQUEST = head("GET", "/")
SOON = 0.1
NEVER = 600.0


async def answer(send: Any, body: bytes = b"") -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def greet(scope: Any, receive: Any, send: Any) -> None:
    await answer(send)


async def read_body(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    while message["type"] == "http.request" and message["more_body"]:
        message = await receive()
    if message["type"] == "http.request":
        await answer(send)


def limits(**changes: Any) -> Settings:
    timeouts = {"header_timeout_seconds": NEVER, "write_timeout_seconds": NEVER}
    return Settings(_env_file=None, **(timeouts | changes))


@asynccontextmanager
async def serving(settings: Settings, app: Application = greet, *, send_buffer: int = 0) -> AsyncIterator[int]:
    """Serve `app` with the limits of `settings`, and yield the port. `send_buffer` is that of the system, in bytes."""
    config = uvicorn.Config(
        app, http=limited_protocol(connection_limits(settings)), lifespan="off", log_config=None, timeout_keep_alive=60
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await running


@pytest.fixture
def protocols(monkeypatch: pytest.MonkeyPatch) -> list[LimitedProtocol]:
    """The protocols of all connections of the test."""
    made: list[LimitedProtocol] = []
    original = LimitedProtocol.connection_made

    def connection_made(protocol: LimitedProtocol, transport: Any) -> None:
        made.append(protocol)
        original(protocol, transport)

    monkeypatch.setattr(LimitedProtocol, "connection_made", connection_made)
    return made


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def connect(stack: AsyncExitStack, port: int, address: str = "127.0.0.1") -> Streams:
    """Connect from this loopback address. The connection is closed with the stack."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    stack.callback(writer.close)
    return reader, writer


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Wait until the server closes the connection, and return what it sent before."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def get(streams: Streams) -> int:
    """Send a request and read its response, which has no body."""
    reader, writer = streams
    writer.write(REQUEST)
    status = await status_of(reader)
    await reader.readuntil(b"\r\n\r\n")
    return status


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: te", b"G", REQUEST[:-2]])
async def test_incomplete_head_gets_408(stack: AsyncExitStack, sent: bytes) -> None:
    port = await stack.enter_async_context(serving(limits(header_timeout_seconds=SOON)))
    reader, writer = await connect(stack, port)
    writer.write(sent)
    received = await closed(reader)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "request_timeout"' in received


async def test_unused_connection_is_closed_without_a_response(stack: AsyncExitStack) -> None:
    port = await stack.enter_async_context(serving(limits(header_timeout_seconds=SOON)))
    reader, _ = await connect(stack, port)
    assert await closed(reader) == b""


@pytest.mark.parametrize(("sent", "status"), [(b"GET / HT", b"HTTP/1.1 408 "), (b"\r\n", b"HTTP/1.1 408 ")])
async def test_head_timeout_applies_to_later_requests(stack: AsyncExitStack, sent: bytes, status: bytes) -> None:
    port = await stack.enter_async_context(serving(limits(header_timeout_seconds=SOON)))
    reader, writer = await connect(stack, port)
    assert await get((reader, writer)) == 200
    writer.write(sent)
    assert (await closed(reader)).startswith(status)


async def test_rest_of_a_body_that_nothing_reads_closes_the_connection(stack: AsyncExitStack) -> None:
    port = await stack.enter_async_context(serving(limits(header_timeout_seconds=SOON)))
    reader, writer = await connect(stack, port)
    writer.write(head("POST", "/", "Content-Length: 1000000"))
    assert await status_of(reader) == 200
    dripping = asyncio.create_task(drip(writer, b" "))
    assert b"408" not in await closed(reader)
    dripping.cancel()


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(SOON / 10)


async def test_body_takes_longer_than_the_head_may(stack: AsyncExitStack) -> None:
    port = await stack.enter_async_context(serving(limits(header_timeout_seconds=SOON), read_body))
    reader, writer = await connect(stack, port)
    timing, _ = await connect(stack, port)
    writer.write(head("POST", "/", "Content-Length: 10") + b"half ")
    assert await closed(timing) == b""  # this connection reached the timeout
    writer.write(b"body.")
    assert await status_of(reader) == 200


async def test_trailer_must_arrive_in_time(stack: AsyncExitStack) -> None:
    port = await stack.enter_async_context(serving(limits(header_timeout_seconds=SOON), read_body))
    reader, writer = await connect(stack, port)
    writer.write(head("POST", "/", "Transfer-Encoding: chunked") + b"1\r\nx\r\n")
    writer.write(b"0\r\nName: va")
    await writer.drain()
    dripping = asyncio.create_task(drip(writer, b"lue"))
    await closed(reader)
    dripping.cancel()


@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.1\r\nHost: ", b"GET /", head("POST", "/", "Transfer-Encoding: chunked") + b"0\r\nName: "],
    ids=["header", "path", "trailer"],
)
async def test_endless_head_or_trailer_closes_the_connection(stack: AsyncExitStack, start: bytes) -> None:
    port = await stack.enter_async_context(serving(limits(), read_body))
    reader, writer = await connect(stack, port)
    ending = asyncio.create_task(closed(reader))
    writer.write(start)
    sent = 0
    while not ending.done() and sent < 100 * MAX_HEAD_BYTES:
        writer.write(b"x" * 4096)
        sent += 4096
        try:
            await writer.drain()
        except ConnectionError:
            break
    received = await ending
    assert received == b"" or received.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert sent < 100 * MAX_HEAD_BYTES


async def test_request_with_too_many_headers_gets_431(stack: AsyncExitStack) -> None:
    port = await stack.enter_async_context(serving(limits()))
    accepted = await connect(stack, port)
    accepted[1].write(head("GET", "/", *["x: y"] * (MAX_HEADERS - 2)))
    assert await status_of(accepted[0]) == 200
    reader, writer = await connect(stack, port)
    writer.write(head("GET", "/", *["x: y"] * (MAX_HEADERS - 1)))
    received = await closed(reader)
    assert received.startswith(b"HTTP/1.1 431 ")
    assert f"more than {MAX_HEADERS} headers".encode() in received


async def test_invalid_request_gets_a_problem(stack: AsyncExitStack) -> None:
    port = await stack.enter_async_context(serving(limits()))
    reader, writer = await connect(stack, port)
    writer.write(b"no request\r\n\r\n")
    received = await closed(reader)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'"code": "bad_request"' in received


class TestPipelining:
    """Requests that a client sends without waiting for responses."""

    async def test_nothing_is_read_while_a_request_has_no_response(
        self, stack: AsyncExitStack, protocols: list[LimitedProtocol]
    ) -> None:
        """So the memory of a connection is limited to what was received at once."""
        release = asyncio.Event()
        begun = 0

        async def wait(scope: Any, receive: Any, send: Any) -> None:
            nonlocal begun
            begun += 1
            await receive()
            disconnect = asyncio.ensure_future(receive())  # resumes reading in uvicorn
            await release.wait()
            await answer(send)
            await disconnect

        port = await stack.enter_async_context(serving(limits(), wait))
        reader, writer = await connect(stack, port)
        writer.write(REQUEST * 100)
        async with asyncio.timeout(10):
            while not (protocols and protocols[0]._unread):  # noqa: ASYNC110
                await asyncio.sleep(0)
        writer.write(REQUEST * 100)
        other = await connect(stack, port)
        other[1].write(REQUEST)
        async with asyncio.timeout(10):
            while begun < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert len(protocols[0]._unread) < 100 * len(REQUEST)
        assert not protocols[0].transport.is_reading()
        assert not protocols[0].pipeline
        release.set()
        for _ in range(200):
            assert await status_of(reader) == 200
            await reader.readuntil(b"\r\n\r\n")

    @pytest.mark.parametrize("size", [1, 7, 50, 1_000_000])
    async def test_each_request_gets_its_response_in_order(
        self, stack: AsyncExitStack, size: int, protocols: list[LimitedProtocol]
    ) -> None:
        """However the requests are divided into packets."""

        async def echo(scope: Any, receive: Any, send: Any) -> None:
            body = b""
            more = True
            while more:
                message = await receive()
                body += message["body"]
                more = message["more_body"]
            await answer(send, scope["path"].encode() + b" " + body)
            most_queued.append(max(len(protocol.pipeline) for protocol in protocols))

        most_queued: list[int] = []
        ends = b"\r\n\r\n" * 20
        chunks = b"3\r\nabc\r\n1\r\n\n\r\n0\r\n\r\n"
        sent, expected = b"", []
        for number in range(5):
            sent += head("GET", f"/{number}") + head("POST", f"/{number}", f"Content-Length: {len(ends)}") + ends
            sent += head("POST", f"/{number}", "Transfer-Encoding: chunked") + chunks
            expected += [b"/%d %b" % (number, body) for body in (b"", ends, b"abc\n")]
        port = await stack.enter_async_context(serving(limits(), echo))
        reader, writer = await connect(stack, port)
        sending = asyncio.create_task(send_in_packets(writer, sent, size))
        for body in expected:
            assert await status_of(reader) == 200
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(body)) == body
        await sending
        assert max(most_queued) <= MIN_PIECE_BYTES // 18, "the shortest request has 18 bytes"

    async def test_requests_after_the_last_one_are_ignored(self, stack: AsyncExitStack) -> None:
        port = await stack.enter_async_context(serving(limits()))
        reader, writer = await connect(stack, port)
        writer.write(REQUEST + head("GET", "/", "Connection: close") + REQUEST)
        assert (await closed(reader)).count(b"HTTP/1.1 200 ") == 2


async def send_in_packets(writer: asyncio.StreamWriter, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await writer.drain()
        await asyncio.sleep(0)


async def test_slow_reader_is_dropped(stack: AsyncExitStack) -> None:
    """The response ends for the application, and its client sees a broken connection."""
    ended = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        assert not (await receive())["more_body"]
        disconnected = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not disconnected.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    port = await stack.enter_async_context(serving(limits(write_timeout_seconds=SOON), stream))
    reader, writer = await connect(stack, port)
    writer.write(REQUEST)
    assert await status_of(reader) == 200
    # asyncio stops reading from the socket when the reader's buffer is full
    async with asyncio.timeout(10):
        await ended.wait()


@pytest.mark.parametrize("size", [20_000_000, 40_000], ids=["large", "smaller than the transport's buffer"])
async def test_rest_of_a_response_must_be_read(stack: AsyncExitStack, size: int) -> None:
    """The application has ended, and the client does not read what is left in the buffer."""

    async def send_much(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"x" * size)

    settings = limits(write_timeout_seconds=SOON)
    port = await stack.enter_async_context(serving(settings, send_much, send_buffer=4096))
    client = stack.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    before = dropped_readers()
    client.send(head("GET", "/", "Connection: close"))
    async with asyncio.timeout(10):
        while dropped_readers() == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def dropped_readers() -> float:
    return REGISTRY.get_sample_value("bloxserver_connections_closed_total", {"reason": "write_timeout"}) or 0


async def test_slow_but_steady_reader_gets_the_whole_response(stack: AsyncExitStack) -> None:
    size = 20_000_000

    async def send_much(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"x" * size)

    port = await stack.enter_async_context(serving(limits(write_timeout_seconds=SOON), send_much))
    reader, writer = await connect(stack, port)
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n")
    received = 0
    while received < size:
        received += len(await reader.readexactly(500_000))
        await asyncio.sleep(SOON / 10)
    assert received == size


async def test_connections_of_an_address_are_limited(stack: AsyncExitStack) -> None:
    port = await stack.enter_async_context(serving(limits(max_connections_per_address=3)))
    mine = [await connect(stack, port) for _ in range(3)]
    assert [await get(streams) for streams in mine] == [200, 200, 200]
    refused, _ = await connect(stack, port)
    received = await closed(refused)
    assert received.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 5" in received
    assert b'"code": "too_many_requests"' in received
    assert await get(await connect(stack, port, "127.0.0.2")) == 200
    assert [await get(streams) for streams in mine] == [200, 200, 200]
    mine[0][1].close()
    await mine[0][1].wait_closed()
    assert await until_served(stack, port) == 200


async def until_served(stack: AsyncExitStack, port: int) -> int:
    """Connect until the server has noticed that another connection was closed."""
    async with asyncio.timeout(10):
        while True:
            reader, writer = await connect(stack, port)
            writer.write(REQUEST)
            try:
                if (status := await status_of(reader)) == 200:
                    return status
            except (ConnectionError, IndexError):
                continue


async def test_proxy_has_no_limit_of_an_address(stack: AsyncExitStack) -> None:
    settings = limits(max_connections_per_address=1, forwarded_allow_ips="127.0.0.1, 10.0.0.0/8")
    port = await stack.enter_async_context(serving(settings))
    assert [await get(await connect(stack, port)) for _ in range(5)] == [200] * 5
    await connect(stack, port, "127.0.0.2")
    assert (await closed((await connect(stack, port, "127.0.0.2"))[0])).startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\n", head("POST", "/", "Content-Length: 10") + b"half"],
    ids=["idle", "head", "body"],
)
async def test_new_connection_replaces_the_oldest_incomplete_request(stack: AsyncExitStack, sent: bytes) -> None:
    port = await stack.enter_async_context(serving(limits(max_connections=16), read_body))
    half_open = [await connect(stack, port, f"127.0.0.{number}") for number in range(2, 18)]
    for _, writer in half_open:
        writer.write(sent)
        await writer.drain()
    assert await get(await connect(stack, port)) == 200
    assert await closed(half_open[0][0]) == b""
    assert not half_open[1][0].at_eof()


async def test_connection_is_refused_if_all_others_have_requests(stack: AsyncExitStack) -> None:
    """A connection with a complete request is never closed for another one."""
    release = asyncio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await release.wait()
        await answer(send)

    port = await stack.enter_async_context(serving(limits(max_connections=16), wait))
    busy = [await connect(stack, port) for _ in range(16)]
    for _, writer in busy:
        writer.write(REQUEST)
    refused, _ = await connect(stack, port)
    assert (await closed(refused)).startswith(b"HTTP/1.1 503 ")
    release.set()
    assert [await status_of(reader) for reader, _ in busy] == [200] * 16


@pytest.fixture
def file_limit() -> Iterator[Callable[[int, int], None]]:
    """Sets the soft and hard limit of open files. Only root may raise the hard limit again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda new_soft, new_hard: resource.setrlimit(resource.RLIMIT_NOFILE, (new_soft, new_hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_limit_of_open_files_is_raised_as_far_as_necessary(file_limit: Callable[[int, int], None]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    file_limit(600, hard)
    connection_limits(limits(max_connections=100))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100 + RESERVED_FILES, hard)


@pytest.mark.parametrize(("hard", "connections"), [(1024, 1024 - RESERVED_FILES), (256, MIN_CONNECTIONS)])
def test_limit_of_open_files_limits_connections(
    file_limit: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, hard: int, connections: int
) -> None:
    # Lowering the real hard limit could not be undone without root.
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: None)
    assert connection_limits(limits()).max_connections == connections


@pytest.mark.parametrize(
    ("allowed", "forwarded", "client", "scheme"),
    [
        ("", "203.0.113.7", "127.0.0.1", "http"),
        ("10.0.0.0/8", "203.0.113.7", "127.0.0.1", "http"),
        ("127.0.0.1", "203.0.113.7", "203.0.113.7", "https"),
        ("127.0.0.0/8", "1.1.1.1, 203.0.113.7", "203.0.113.7", "https"),
        ("127.0.0.1,10.0.0.0/8", "1.1.1.1, 203.0.113.7, 10.0.0.2", "203.0.113.7", "https"),
    ],
)
async def test_forwarded_headers_are_used_only_from_named_proxies(
    stack: AsyncExitStack, allowed: str, forwarded: str, client: str, scheme: str
) -> None:
    """The rightmost address that is not a proxy counts. `Forwarded` is ignored."""

    async def describe(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, f"{scope['client'][0]} {scope['scheme']}".encode())

    with override_settings(FORWARDED_ALLOW_IPS=allowed):
        server = serving_api(describe, "127.0.0.1", 0)  # type: ignore[arg-type]
        server.config.lifespan = "off"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            running = asyncio.create_task(uvicorn.Server(server.config).serve(sockets=[listener]))
            reader, writer = await connect(stack, listener.getsockname()[1])
            forged = (f"X-Forwarded-For: {forwarded}", "X-Forwarded-Proto: https", "Forwarded: for=9.9.9.9;proto=https")
            writer.write(head("GET", "/", *forged, "Connection: close"))
            body = (await closed(reader)).rpartition(b"\r\n\r\n")[2]
            server.should_exit = True
            running.cancel()
    assert body.decode() == f"{client} {scheme}"
