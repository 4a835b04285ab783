"""Opens one connection per request, only to addresses that were checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import httpcore
import httpx

from bloxserver.clients.addresses import Address, Network, is_public, is_within
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.resolver import Resolver
from bloxserver.clients.shares import Share

CONNECT_SECONDS = 5.0


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
    async def connect(self, origin: httpcore.Origin, share: Share) -> AsyncIterator[httpcore.AsyncHTTP11Connection]:
        """Open a connection to the origin, closed at the end of the block. The lookup of its name counts in `share`.

        Raises `OutgoingRequestError`, `httpcore.ConnectError`, `httpcore.ConnectTimeout`.
        """
        host = origin.host.decode("ascii")
        stream = await self._open(host, origin.port, share)
        try:
            if origin.scheme == b"https":
                stream = await stream.start_tls(self._tls, server_hostname=host)
            yield httpcore.AsyncHTTP11Connection(origin, stream)
        finally:
            await stream.aclose()

    async def _open(self, host: str, port: int, share: Share) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolver.resolve(host, share)
        check_addresses(addresses, host, port, self._allow, self._ports)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._network.connect_tcp(str(address), port, CONNECT_SECONDS)
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
