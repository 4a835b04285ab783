"""A response is never mixed up with surplus bytes of another response."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from ipaddress import ip_network

import httpcore
import pytest

from bloxserver.clients.connections import MAX_HEAD_BYTES, MAX_HEAD_LINES, RECEIVE_BUFFER, Connector
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.http import GuardedClient
from bloxserver.clients.resolver import Resolver
from bloxserver.clients.shares import UNLIMITED
from tests.clients.loopback import LoopbackServer, answer
from tests.listening import listening

LOOPBACK = ip_network("127.0.0.1/32")
FOREIGN = answer(b"foreign")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nown\r\n0\r\n\r\n"
# A response followed by surplus bytes.
SURPLUS = [
    ("GET", b"HTTP/1.1 204 No Content\r\n\r\n" + FOREIGN, b""),
    ("POST", b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\nignored" + FOREIGN, b""),
    ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\nignored", b""),
    ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n" + FOREIGN, b""),
    ("HEAD", answer(b"ignored") + FOREIGN, b""),
    ("HEAD", answer(FOREIGN), b""),
    ("GET", answer(b"own") + FOREIGN, b"own"),
    ("GET", answer(b"own") + b"\r\n\r\njunk", b"own"),
    ("GET", answer(b"own" + FOREIGN, length=3), b"own"),
    ("GET", answer(b"", length=0) + FOREIGN, b""),
    ("GET", CHUNKED + FOREIGN, b"own"),
    ("GET", CHUNKED + b"\r\n" + FOREIGN, b"own"),
    ("GET", b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"own") + FOREIGN, b"own"),
    ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + answer(b"own") + FOREIGN, b"own"),
    ("GET", answer(b"own") + b"HTTP/1.1 100 Continue\r\n\r\n", b"own"),
    ("POST", answer(b"", status="413 Too Large") + answer(b"", status="500 Again"), b""),
]


class TestSurplusBytes:
    @pytest.mark.parametrize(("method", "sent", "content"), SURPLUS, ids=lambda value: ascii(value)[:60])
    async def test_surplus_bytes_are_not_read_as_the_next_response(
        self, client: GuardedClient, server: LoopbackServer, method: str, sent: bytes, content: bytes
    ) -> None:
        server.answers |= {"/first": sent, "/second": answer(b"second")}
        first = await client.request(method, server.url("/first"))
        second = await client.request("POST", server.url("/second"), content=b"once")
        assert (first.content, second.content) == (content, b"second")
        assert [request.path for request in server.received] == ["/first", "/second"]

    @pytest.mark.parametrize("moment", ["between the requests", "after the second request"])
    async def test_late_surplus_bytes_are_not_read(
        self, client: GuardedClient, server: LoopbackServer, moment: str
    ) -> None:
        writers: list[StreamWriter] = []

        async def first(writer: StreamWriter) -> None:
            writer.write(answer(b"first"))
            writers.append(writer)

        async def second(writer: StreamWriter) -> None:
            if moment == "after the second request":
                writers[0].write(FOREIGN)
            writer.write(answer(b"second"))

        server.answers |= {"/first": first, "/second": second}
        assert (await client.request("GET", server.url("/first"))).content == b"first"
        if moment == "between the requests":
            writers[0].write(FOREIGN)
        assert (await client.request("GET", server.url("/second"))).content == b"second"

    async def test_surplus_bytes_of_concurrent_requests_are_not_read(
        self, client: GuardedClient, server: LoopbackServer
    ) -> None:
        for number in range(20):
            server.answers[f"/{number}"] = answer(b"%d" % number) + FOREIGN
        requests = [client.request("GET", server.url(f"/{number % 20}")) for number in range(100)]
        responses = await asyncio.gather(*requests)
        assert [response.content for response in responses] == [b"%d" % (number % 20) for number in range(100)]


class TestConnections:
    async def test_each_request_has_its_own_connection(self, client: GuardedClient, server: LoopbackServer) -> None:
        server.answers["/"] = answer(b"ok")
        for _ in range(3):
            await client.request("GET", server.url("/"))
        assert server.connections == 3
        assert {request.headers["connection"] for request in server.received} == {"close"}
        # Returns when the client has closed all connections.
        async with asyncio.timeout(5):
            await asyncio.gather(*server.serving)

    @pytest.mark.parametrize(
        ("status", "method", "body"), [("303 See Other", "GET", b""), ("307 Temporary", "POST", b"body")]
    )
    async def test_each_redirect_has_its_own_connection(
        self, client: GuardedClient, server: LoopbackServer, status: str, method: str, body: bytes
    ) -> None:
        redirect = answer(b"ignored", status=status, headers={"Location": "/next"})
        server.answers |= {"/": redirect + FOREIGN, "/next": answer(b"there") + FOREIGN}
        response = await client.request("POST", server.url("/"), content=b"body", follow_redirects=True)
        assert (response.content, server.connections) == (b"there", 2)
        received = [(request.method, request.path, request.body) for request in server.received]
        assert received == [("POST", "/", b"body"), (method, "/next", body)]

    async def test_response_before_the_end_of_the_request_is_accepted(self, client: GuardedClient) -> None:
        async def too_large(reader: StreamReader, writer: StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(b"too large", status="413 Too Large") + FOREIGN)
            await writer.drain()
            await reader.read()

        async with listening(too_large) as port:
            for _ in range(2):
                response = await client.request("POST", f"http://127.0.0.1:{port}/", content=bytes(2_000_000))
                assert (response.status, response.content) == (413, b"too large")

    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_connection_is_closed_after_a_timeout(self, client: GuardedClient, scheme: str) -> None:
        started, ended = asyncio.Event(), asyncio.Event()

        async def silent(reader: StreamReader, writer: StreamWriter) -> None:
            await reader.read(1)
            started.set()
            await reader.read()
            ended.set()

        async with listening(silent) as port, asyncio.timeout(5):
            request = asyncio.create_task(client.request("GET", f"{scheme}://127.0.0.1:{port}/"))
            await started.wait()
            request.cancel()
            await asyncio.wait([request])
            assert request.cancelled()
            await ended.wait()


class TestHeads:
    @pytest.mark.parametrize(
        "sent",
        [
            b"HTTP/1.1 100 \r\n\r\n" * 3_000,
            b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 2_000,
            b"HTTP/1.1 200 OK\r\na: " + b"b" * 2 * MAX_HEAD_BYTES,
        ],
        ids=["informational responses", "headers", "a header"],
    )
    async def test_long_head_is_rejected(self, client: GuardedClient, server: LoopbackServer, sent: bytes) -> None:
        server.answers["/"] = sent + answer(b"late")
        with pytest.raises(OutgoingRequestError, match=f"more than {MAX_HEAD_BYTES} bytes or {MAX_HEAD_LINES} lines"):
            await client.request("GET", server.url("/"))

    @pytest.mark.parametrize("trailer", [b"a:\r\n" * 250_000, b"a:\r\n" * 2_000], ids=["1 MB", "8 KB"])
    async def test_long_trailer_is_rejected(
        self, client: GuardedClient, server: LoopbackServer, trailer: bytes
    ) -> None:
        server.answers["/"] = CHUNKED[:-2] + trailer + b"\r\n"
        with pytest.raises(OutgoingRequestError, match=f"more than {MAX_HEAD_BYTES} bytes or {MAX_HEAD_LINES} lines"):
            await client.request("GET", server.url("/"))

    @pytest.mark.parametrize("size", [1, 1_000, 100_000])
    async def test_lines_of_a_body_are_not_limited(
        self, client: GuardedClient, server: LoopbackServer, size: int
    ) -> None:
        lines = b"\n" * 20_000
        chunks = [lines[start : start + size] for start in range(0, len(lines), size)]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        trailer = b"a: b\r\n" * 200
        server.answers["/"] = CHUNKED[: CHUNKED.index(b"3\r\n")] + sent + b"0\r\n" + trailer + b"\r\n"
        assert (await client.request("GET", server.url("/"))).content == lines

    async def test_head_within_the_limits_is_read(self, client: GuardedClient, server: LoopbackServer) -> None:
        headers = {f"name-{number}": "a" * 250 for number in range(MAX_HEAD_LINES - 10)}
        server.answers["/"] = answer(b"\n" * 1000, headers=headers)
        response = await client.request("GET", server.url("/"))
        assert response.content == b"\n" * 1000
        assert len(response.headers) == len(headers) + 1


async def test_receive_buffer_is_small(server: LoopbackServer) -> None:
    connector = Connector([LOOPBACK], frozenset(), Resolver())
    origin = httpcore.Origin(b"http", b"127.0.0.1", server.port)
    async with connector.connect(origin, UNLIMITED) as connection:
        opened = connection._network_stream.get_extra_info("socket")
        # Linux doubles the number. The default is 128 KiB, which grows to megabytes.
        assert opened.getsockopt(*RECEIVE_BUFFER[:2]) <= 2 * RECEIVE_BUFFER[2]
