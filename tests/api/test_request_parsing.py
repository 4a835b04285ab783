"""Requests that are too large, invalid, or sent without waiting for responses."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bloxserver.api.connections import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MIN_PIECE_BYTES,
    LimitedProtocol,
)
from tests.api.limited_server import REQUEST, answer, closed, connect, limits, read_body, serving
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
