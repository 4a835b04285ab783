"""Connections to addresses that were checked, kept for a while after use."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import httpcore
import httpx

from bloxserver.clients.addresses import Address, Network, is_public, is_within, read_address

MAX_IDLE = 64
IDLE_SECONDS = 5.0
CONNECT_SECONDS = 5.0
PASSING = frozenset({"name_not_resolved", "connection_failed", "timeout", "invalid_response"})


class OutgoingRequestError(Exception):
    """A request that got no usable answer. The message names the host at most, never query, user or headers.

    Codes: `invalid_url`, `invalid_header`, `invalid_request`, `address_refused`, `port_refused`,
    `name_not_resolved`, `connection_failed`, `tls_failed`, `timeout`, `invalid_response`, `response_too_large`,
    `redirect_refused`, `too_many_redirects`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def retryable(self) -> bool:
        """Whether the same request may get an answer another time."""
        return self.code in PASSING


class Connections:
    """HTTP connections, lent to one request at a time.

    Unlike the pool of httpcore, whose cost per request grows with the square of the open connections, there is no
    limit on them: the worker's concurrency is one, and another here would let slow hosts hold up everybody.
    """

    def __init__(self, backend: httpcore.AsyncNetworkBackend) -> None:
        self._backend = backend
        self._ssl_context = httpx.create_ssl_context(trust_env=False)
        self._idle: list[httpcore.AsyncHTTPConnection] = []
        self._max_idle = MAX_IDLE

    @asynccontextmanager
    async def lend(self, origin: httpcore.Origin) -> AsyncIterator[httpcore.AsyncHTTPConnection]:
        connection = await self._take_idle(origin) or httpcore.AsyncHTTPConnection(
            origin, self._ssl_context, keepalive_expiry=IDLE_SECONDS, network_backend=self._backend
        )
        try:
            yield connection
        finally:
            # One that could not be opened calls itself idle, and closed as well.
            if connection.is_idle() and not connection.is_closed():
                self._idle.append(connection)
            else:
                await connection.aclose()
            while len(self._idle) > self._max_idle:
                await self._idle.pop(0).aclose()

    async def aclose(self) -> None:
        self._max_idle = 0
        while self._idle:
            await self._idle.pop().aclose()

    async def _take_idle(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection | None:
        while True:
            connection = next((each for each in reversed(self._idle) if each.can_handle_request(origin)), None)
            if connection is None:
                return None
            self._idle.remove(connection)
            if not connection.has_expired():
                return connection
            await connection.aclose()


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to checked addresses, and in no other way. TLS still sees the name."""

    def __init__(self, allow: Sequence[Network], ports: frozenset[int]) -> None:
        self._allow = tuple(allow)
        self._ports = ports
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # the interface of httpcore
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await resolve(host, port)
        check_addresses(addresses, host, port, self._allow, self._ports)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._network.connect_tcp(
                    str(address), port, CONNECT_SECONDS, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError("no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  # the interface of httpcore
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise OutgoingRequestError("address_refused", "unix sockets cannot be reached")


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a name, in the order to try them. Raises `OutgoingRequestError`."""
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [read_address(str(answer[4][0])) for answer in answers]
    # ValueError: labels that are no domain names, answers that are no addresses.
    except (OSError, ValueError):
        addresses = []
    if not addresses:
        raise OutgoingRequestError("name_not_resolved", f"{host} has no address")
    return list(dict.fromkeys(addresses))


def check_addresses(
    addresses: Iterable[Address], host: str, port: int, allow: Sequence[Network], ports: frozenset[int]
) -> None:
    """Raise `OutgoingRequestError` unless all addresses of a host are public, and the port one of `ports`.

    An address inside `allow` is fine, on any port.
    """
    for address in addresses:
        if is_within(address, allow):
            continue
        if not is_public(address):
            raise OutgoingRequestError("address_refused", f"{host} is not on the public internet")
        if port not in ports:
            numbers = ", ".join(str(number) for number in sorted(ports))
            raise OutgoingRequestError("port_refused", f"port {port} of {host} is not one of {numbers}")
