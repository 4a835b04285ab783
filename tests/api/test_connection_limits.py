"""Limits of the number of connections."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bloxserver.api.connection_limits import (
    MIN_CONNECTIONS,
    RESERVED_FILES,
    connection_limits,
)
from tests.api.limited_server import REQUEST, answer, closed, connect, get, limits, read_body, serving
from tests.server import head, status_of


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
