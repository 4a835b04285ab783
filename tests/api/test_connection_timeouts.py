"""Slow clients: heads, bodies and trailers must arrive in time, and responses must be read."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bloxserver.api.connections import LimitedProtocol
from bloxserver.observability.metrics import REGISTRY
from tests.api.limited_server import REQUEST, SOON, answer, closed, connect, get, limits, read_body, serving
from tests.server import head, status_of


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


@pytest.mark.parametrize(("size", "left"), [(1_500_000, 1_000_000), (1_500_000, 10_000), (40_000, 40_000)])
async def test_rest_of_a_response_must_be_read(
    stack: AsyncExitStack, protocols: list[LimitedProtocol], size: int, left: int
) -> None:
    """The application has ended. The client stops to read with this number of bytes in the buffer.

    The transport pauses writing above 64 KiB, and resumes below 16 KiB.
    """

    async def send_much(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"x" * size)

    settings = limits(write_timeout_seconds=SOON)
    port = await stack.enter_async_context(serving(settings, send_much, send_buffer=4096))
    client = stack.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    before = dropped_readers()
    client.send(head("GET", "/"))
    await loop.sock_recv(client, 1000)
    while protocols[0].transport.get_write_buffer_size() > left:
        await loop.sock_recv(client, 1000)
    assert protocols[0].transport.get_write_buffer_size() > 0
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
