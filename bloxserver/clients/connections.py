"""Opens one connection per request, only to addresses that were checked."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpcore
import httpx

from bloxserver.clients.addresses import Address, Network, is_public, is_within
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.resolver import Resolver
from bloxserver.clients.shares import Share

CONNECT_SECONDS = 5.0
MAX_HEAD_BYTES = 64 * 1024
MAX_HEAD_LINES = 256
"""Of all heads of a response, as a server can send any number of informational ones, and of the trailer of its body."""
MAX_LINES = 256
PIECE_BYTES = 2 * 1024
"""Data with more than `MAX_LINES` is parsed in pieces of this size."""
RECEIVE_BUFFER = (socket.SOL_SOCKET, socket.SO_RCVBUF, 48 * 1024)
"""The event loop reads all that has arrived, up to megabytes, before the reader can charge or pause."""


class LimitedStream(httpcore.AsyncNetworkStream):
    """Limits what is parsed at once, and the size of heads and trailers.

    A header takes 3 microseconds of the event loop, an informational response 10.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, host: str) -> None:
        self._stream = stream
        self._host = host
        self._unread = b""
        self._bytes = self._lines = 0
        """Read since the last part of the body."""

    def body_received(self) -> None:
        """To be called for each part of the body: what was read before it is not the trailer."""
        self._bytes = self._lines = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Raises `OutgoingRequestError` if a head or a trailer is too large."""
        if self._bytes > MAX_HEAD_BYTES or self._lines > MAX_HEAD_LINES:
            limits = f"{MAX_HEAD_BYTES} bytes or {MAX_HEAD_LINES} lines"
            raise OutgoingRequestError("invalid_response", f"the headers of {self._host} have more than {limits}")
        data = self._unread or await self._stream.read(max_bytes, timeout)
        size = len(data) if data.count(b"\n") <= MAX_LINES else PIECE_BYTES
        size = min(size, MAX_HEAD_BYTES + 1 - self._bytes)
        piece, self._unread = data[:size], data[size:]
        self._bytes += len(piece)
        self._lines += piece.count(b"\n")
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Connection(httpcore.AsyncHTTP11Connection):
    """A connection that limits the head and the trailer of the response."""

    def __init__(self, origin: httpcore.Origin, stream: LimitedStream) -> None:
        super().__init__(origin, stream)
        self.body_received = stream.body_received


class Connector:
    """Opens HTTP/1.1 connections to checked addresses. TLS verifies the host name.

    A connection serves one request and is closed. In HTTP/1.1 only the order relates a response to its request. If a
    connection were reused, surplus bytes of one response could be read as the response to the next request, which may
    belong to another flow.
    """

    def __init__(self, allow: Sequence[Network], ports: frozenset[int], resolver: Resolver) -> None:
        self._allow = tuple(allow)
        self._ports = ports
        self._resolver = resolver
        self._network = httpcore.AnyIOBackend()
        self._tls = httpx.create_ssl_context(trust_env=False)
        self._tls.set_alpn_protocols(["http/1.1"])

    @asynccontextmanager
    async def connect(self, origin: httpcore.Origin, share: Share) -> AsyncIterator[Connection]:
        """Open a connection to the origin, closed at the end of the block. The lookup of its name counts in `share`.

        Raises `OutgoingRequestError`, `httpcore.ConnectError`, `httpcore.ConnectTimeout`.
        """
        host = origin.host.decode("ascii")
        stream = await self._open(host, origin.port, share)
        try:
            if origin.scheme == b"https":
                stream = await stream.start_tls(self._tls, server_hostname=host)
            yield Connection(origin, LimitedStream(stream, host))
        finally:
            await stream.aclose()

    async def _open(self, host: str, port: int, share: Share) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolver.resolve(host, share)
        check_addresses(addresses, host, port, self._allow, self._ports)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._network.connect_tcp(
                    str(address), port, CONNECT_SECONDS, socket_options=[RECEIVE_BUFFER]
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError("no address")


def check_addresses(
    addresses: Iterable[Address], host: str, port: int, allow: Sequence[Network], ports: frozenset[int]
) -> None:
    """Raise `OutgoingRequestError` unless every address is public and the port is one of `ports`.

    An address in `allow` may be private, and any port is allowed.
    """
    for address in addresses:
        if is_within(address, allow):
            continue
        if not is_public(address):
            raise OutgoingRequestError("address_refused", f"{host} is not on the public internet")
        if port not in ports:
            numbers = ", ".join(str(number) for number in sorted(ports))
            raise OutgoingRequestError("port_refused", f"port {port} of {host} is not one of {numbers}")
