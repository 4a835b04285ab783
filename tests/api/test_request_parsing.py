"""Requests that are too large, invalid, or sent without waiting for responses."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest

from bloxserver.api.connection_limits import MAX_CHUNKS
from bloxserver.api.connections import (
    MAX_CHUNKS_PER_TURN,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIECE_BYTES,
    MIN_PIECE_BYTES,
    LimitedProtocol,
)
from tests.api.limited_server import (
    REQUEST,
    Application,
    answer,
    closed,
    connect,
    get,
    greet,
    limits,
    read_body,
    serving,
)
from tests.server import head, status_of


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


CHUNKED = head("POST", "/", "Transfer-Encoding: chunked")
END_OF_CHUNKS = b"0\r\n\r\n"
LARGEST_TURN = MAX_CHUNKS_PER_TURN + MAX_PIECE_BYTES // len(b"1\r\nx\r\n") + 1
"""Chunks of one byte that are parsed at once."""


class TestChunks:
    @pytest.mark.parametrize("chunk", [b"1\r\nx\r\n", b"1\r\n\n\r\n", b"1;name=value\r\nx\r\n"], ids=ascii)
    async def test_small_chunks_are_parsed_in_turns(self, stack: AsyncExitStack, chunk: bytes) -> None:
        """Also those of a second request on the same connection."""
        sizes: list[int] = []

        async def measure(scope: Any, receive: Any, send: Any) -> None:
            more = True
            while more:
                message = await receive()
                sizes.append(len(message["body"]))
                more = message["more_body"]
            await answer(send)

        port = await stack.enter_async_context(serving(limits(), measure))
        streams = reader, writer = await connect(stack, port)
        for _ in range(2):
            writer.write(CHUNKED + chunk * 40_000 + END_OF_CHUNKS)
            assert await status_of(reader) == 200
            await reader.readuntil(b"\r\n\r\n")
        assert sum(sizes) == 80_000
        assert max(sizes) <= LARGEST_TURN
        assert await get(streams) == 200

    async def test_next_turn_waits_until_the_application_has_read_the_body(
        self, stack: AsyncExitStack, protocols: list[LimitedProtocol]
    ) -> None:
        release = asyncio.Event()

        async def wait(scope: Any, receive: Any, send: Any) -> None:
            await release.wait()
            await read_body(scope, receive, send)

        port = await stack.enter_async_context(serving(limits(), wait))
        reader, writer = await connect(stack, port)
        writer.write(CHUNKED + b"1\r\nx\r\n" * 40_000 + END_OF_CHUNKS)
        async with asyncio.timeout(10):
            while not (protocols and protocols[0]._unread):  # noqa: ASYNC110
                await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(protocols[0].cycle.body) <= LARGEST_TURN
        release.set()
        assert await status_of(reader) == 200

    async def test_rest_of_a_body_after_the_response_is_parsed_in_turns(
        self, stack: AsyncExitStack, protocols: list[LimitedProtocol]
    ) -> None:
        port = await stack.enter_async_context(serving(limits()))
        reader, writer = await connect(stack, port)
        writer.write(CHUNKED + b"1\r\nx\r\n" * 40_000 + END_OF_CHUNKS + REQUEST)
        counted = [0]
        assert await status_of(reader) == 200
        await reader.readuntil(b"\r\n\r\n")
        responding = asyncio.create_task(status_of(reader))
        while not responding.done():
            counted.append(protocols[0]._chunks)
            await asyncio.sleep(0)
        assert await responding == 200
        assert counted[-1] <= 40_001
        turns = [after - before for before, after in pairwise(counted)]
        assert max(turns[1:]) <= LARGEST_TURN
        assert len([size for size in turns if size > 0]) > 10

    async def test_chunks_without_data_in_a_turn_do_not_stop_the_body(self, stack: AsyncExitStack) -> None:
        port = await stack.enter_async_context(serving(limits(), read_body))
        reader, writer = await connect(stack, port)
        writer.write(CHUNKED + (b"1;" + b"e" * 10_000 + b"\r\nx\r\n") * 50 + END_OF_CHUNKS)
        assert await status_of(reader) == 200

    @pytest.mark.parametrize("app", [read_body, greet])
    async def test_number_of_chunks_is_limited(self, stack: AsyncExitStack, app: Application) -> None:
        port = await stack.enter_async_context(serving(limits(), app))
        streams = reader, writer = await connect(stack, port)
        writer.write(CHUNKED + b"1\r\nx\r\n" * MAX_CHUNKS + END_OF_CHUNKS)
        assert await status_of(reader) == 200
        await reader.readuntil(b"\r\n\r\n")
        assert await get(streams) == 200
        writer.write(CHUNKED + b"1\r\nx\r\n" * (MAX_CHUNKS + 1) + END_OF_CHUNKS)
        received = await closed(reader)
        assert received.count(b"HTTP/1.1 ") == 1
        if app is read_body:
            assert received.startswith(b"HTTP/1.1 413 ")
            assert b'"code": "payload_too_large"' in received
            assert f"more than {MAX_CHUNKS} chunks".encode() in received
        else:
            assert received.startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize(
        ("rest", "status"),
        [(b"invalid\r\n", 400), (b"0\r\n" + b"a: b\r\n" * MAX_HEADERS + b"\r\n", 431)],
        ids=["chunk", "trailer"],
    )
    async def test_error_in_a_body_gets_a_response(self, stack: AsyncExitStack, rest: bytes, status: int) -> None:
        """The application sees that the client has disconnected."""
        last: list[str] = []

        async def read(scope: Any, receive: Any, send: Any) -> None:
            message: dict[str, Any] = {"more_body": True}
            while message.get("more_body"):
                message = await receive()
            last.append(message["type"])
            await answer(send)

        port = await stack.enter_async_context(serving(limits(), read))
        reader, writer = await connect(stack, port)
        writer.write(CHUNKED + b"1\r\nx\r\n")
        await writer.drain()
        writer.write(rest)
        received = await closed(reader)
        assert received.startswith(b"HTTP/1.1 %d " % status)
        assert received.count(b"HTTP/1.1 ") == 1
        assert last == ["http.disconnect"]

    async def test_trailer_is_not_a_header_of_the_request(self, stack: AsyncExitStack) -> None:
        async def names(scope: Any, receive: Any, send: Any) -> None:
            while (await receive())["more_body"]:
                pass
            await answer(send, b" ".join(name for name, _ in scope["headers"]))

        port = await stack.enter_async_context(serving(limits(), names))
        reader, writer = await connect(stack, port)
        close = head("POST", "/", "Transfer-Encoding: chunked", "Connection: close")
        writer.write(close + b"1\r\nx\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
        names_received = (await closed(reader)).rpartition(b"\r\n\r\n")[2]
        assert names_received == b"host content-type transfer-encoding connection"


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
