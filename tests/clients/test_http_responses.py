"""The guarded client: hostile, unusual and large responses."""

from __future__ import annotations

import asyncio
import gzip
from asyncio import StreamWriter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bloxserver.clients.http import MAX_CHUNKS, GuardedClient, OutgoingRequestError
from bloxserver.clients.shares import UNLIMITED
from tests.clients.loopback import LoopbackServer, answer, refusal


async def drip(writer: StreamWriter) -> None:
    """Send single bytes at intervals shorter than a read timeout."""
    writer.write(answer(length=1000))
    while not writer.is_closing():
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.01)


async def flood(writer: StreamWriter) -> None:
    """Send an endless body without a length."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"1000\r\n" + b"." * 0x1000 + b"\r\n")
        await writer.drain()


async def hang_up(writer: StreamWriter) -> None:
    writer.close()


def truncated(sent: bytes) -> Callable[[StreamWriter], Awaitable[None]]:
    """Send these bytes and close the connection."""

    async def send(writer: StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    return send


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(20_000_000), mtime=0)
GZIP = {"Content-Encoding": "gzip"}


class TestResponses:
    @pytest.mark.parametrize(
        ("sent", "code"),
        [
            (drip, "timeout"),
            (flood, "response_too_large"),
            (hang_up, "invalid_response"),
            (answer(bytes(100_001)), "response_too_large"),
            (answer(BOMB, headers=GZIP), "response_too_large"),
            (
                answer(gzip.compress(BOMB, mtime=0), headers={"Content-Encoding": "gzip, gzip"}),
                "response_not_decodable",
            ),
            (answer(b"not packed", headers=GZIP), "response_not_decodable"),
            (answer(gzip.compress(b"whole", mtime=0)[:-3], headers=GZIP), "invalid_response"),
            (answer(b"?", headers={"Content-Encoding": "br"}), "response_not_decodable"),
            (b"\0\0\0\0\r\n\r\n", "invalid_response"),
            (b"HTTP/1.1 abc\r\n\r\n", "invalid_response"),
            (answer(headers={"X": "\0"}), "invalid_response"),
            (answer(headers={"Transfer-Encoding": "chunked, chunked"}), "invalid_response"),
            (answer(b"two", headers={"Content-Length": "2"}), "invalid_response"),
            (answer(b"two", headers={"Content-Length": "+3"}), "invalid_response"),
            (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "invalid_response"),
            (truncated(answer(b"half", length=8)), "invalid_response"),
            (truncated(CHUNKED_HEAD + b"4\r\nhalf\r\n"), "invalid_response"),
            (truncated(CHUNKED_HEAD + b"8\r\nhalf"), "invalid_response"),
            (truncated(b"HTTP/1.1 200 OK\r\nContent-"), "invalid_response"),
            (truncated(b"HTTP/1.1 100 Continue\r\n\r\n"), "invalid_response"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 200_000 + b"\r\n\r\n", "invalid_response"),
        ],
        ids=lambda value: ascii(getattr(value, "__name__", value))[:40],
    )
    async def test_hostile_responses_are_errors(
        self, client: GuardedClient, server: LoopbackServer, sent: Any, code: str
    ) -> None:
        server.answers["/"] = sent
        assert await refusal(client, server.url("/?key=secret"), timeout_seconds=0.3) == code

    @pytest.mark.parametrize(
        ("sent", "content"),
        [
            (answer(bytes(100_000)), bytes(100_000)),
            (answer(gzip.compress(b"packed", mtime=0), headers=GZIP), b"packed"),
            (answer(b"", headers=GZIP), b""),
            (answer(gzip.compress(b"one", mtime=0) + gzip.compress(b"two", mtime=0), headers=GZIP), b"onetwo"),
            (answer("é".encode(), headers={"Content-Encoding": "UTF-8"}), "é".encode()),
            (answer(b"plain", headers={"Content-Encoding": "Identity"}), b"plain"),
            (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"late"), b"late"),
            (answer(b"twice", headers={"Content-Length": "5"}), b"twice"),
            (CHUNKED_HEAD.replace(b"\r\n", b"\r\nContent-Length: 99\r\n", 1) + b"3\r\nown\r\n0\r\n\r\n", b"own"),
            (CHUNKED_HEAD + b"3;a=b\r\nown\r\n0\r\nTrailer: 1\r\n\r\n", b"own"),
            (truncated(b"HTTP/1.0 200 OK\r\n\r\nuntil the end"), b"until the end"),
            (truncated(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nown"), b"own"),
            (truncated(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end"), b"until the end"),
        ],
        ids=lambda value: ascii(getattr(value, "__qualname__", value))[:40],
    )
    async def test_unusual_responses_are_read(
        self, client: GuardedClient, server: LoopbackServer, sent: Any, content: bytes
    ) -> None:
        server.answers["/"] = sent
        assert (await client.request("GET", server.url("/"))).content == content

    @pytest.mark.parametrize("sent", [b"?", bytes(100_001)], ids=["not decodable", "too large"])
    async def test_status_is_available_if_the_body_cannot_be_decoded(
        self, client: GuardedClient, server: LoopbackServer, sent: bytes
    ) -> None:
        server.answers["/"] = answer(sent, status="503 Busy", headers={"Content-Encoding": "br", "Retry-After": "7"})
        response = await client.request("GET", server.url("/"))
        assert (response.status, response.headers["retry-after"]) == (503, "7")
        with pytest.raises(OutgoingRequestError):
            _ = response.content

    async def test_body_is_not_decompressed_when_it_is_received(
        self, client: GuardedClient, server: LoopbackServer
    ) -> None:
        server.answers["/"] = answer(gzip.compress(bytes(1_000_000), mtime=0), headers=GZIP)
        response = await client.request("GET", server.url("/"))
        assert response.received == gzip.compress(bytes(1_000_000), mtime=0)
        with pytest.raises(OutgoingRequestError, match="too large"):
            _ = response.content

    @pytest.mark.parametrize(("chunks", "accepted"), [(MAX_CHUNKS, True), (MAX_CHUNKS + 1, False)])
    async def test_number_of_chunks_is_limited(
        self, client: GuardedClient, server: LoopbackServer, chunks: int, accepted: bool
    ) -> None:
        server.answers["/"] = CHUNKED_HEAD + b"1\r\na\r\n" * chunks + b"0\r\n\r\n"
        response = await client.request("GET", server.url("/"))
        if accepted:
            assert response.content == b"a" * chunks
        else:
            with pytest.raises(OutgoingRequestError, match=f"more than {MAX_CHUNKS} chunks"):
                _ = response.content

    @pytest.mark.parametrize(
        ("sent", "turns"),
        [
            (answer(b"ok"), 0),
            (CHUNKED_HEAD + b"fa00\r\n" + bytes(64_000) + b"\r\n0\r\n\r\n", 1),
            (CHUNKED_HEAD + b"1\r\na\r\n" * 64 + b"0\r\n\r\n", 4),
        ],
        ids=["small", "large", "small chunks"],
    )
    async def test_body_is_read_in_turns_of_its_user(
        self, client: GuardedClient, server: LoopbackServer, sent: bytes, turns: int
    ) -> None:
        taken: list[None] = []

        async def turn() -> None:
            taken.append(None)

        server.answers["/"] = sent
        await client.limited_to(UNLIMITED, turn=turn).request("GET", server.url("/"))
        assert len(taken) == turns

    async def test_response_to_head_has_no_body(self, client: GuardedClient, server: LoopbackServer) -> None:
        server.answers["/"] = answer(headers={"Content-Encoding": "br"}, length=10_000_000)
        response = await client.request("HEAD", server.url("/"))
        assert (response.status, response.content) == (200, b"")

    async def test_repeated_headers_are_joined(self, client: GuardedClient, server: LoopbackServer) -> None:
        server.answers["/"] = answer(headers={"Vary": "A", "VARY": "B", "X-Name": "é"})
        response = await client.request("GET", server.url("/"))
        assert response.headers == {"vary": "A, B", "x-name": "é", "content-length": "0"}
        assert response.cookies == []

    async def test_cookies_are_not_joined(self, client: GuardedClient, server: LoopbackServer) -> None:
        dated = "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"
        server.answers["/"] = answer(headers={"Set-Cookie": dated, "X": "1", "SET-COOKIE": "b=2"})
        response = await client.request("GET", server.url("/"))
        assert response.headers == {"x": "1", "content-length": "0"}
        assert response.cookies == [dated, "b=2"]

    @pytest.mark.parametrize(("sent", "text"), [("é日".encode(), "é日"), (b"caf\xe9", "café"), (b"\xc3", "Ã")])
    async def test_headers_are_decoded_as_utf8_or_latin1(
        self, client: GuardedClient, server: LoopbackServer, sent: bytes, text: str
    ) -> None:
        server.answers["/"] = b"HTTP/1.1 204 No Content\r\nX-Name: " + sent + b"\r\n\r\n"
        assert (await client.request("GET", server.url("/"))).headers == {"x-name": text}
