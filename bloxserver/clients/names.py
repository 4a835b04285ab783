"""Looks up the addresses of host names in /etc/hosts and DNS, without threads: cancelling a lookup ends it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import dns.asyncresolver
import dns.exception
import dns.message
import dns.nameserver
import dns.query
import dns.resolver

HOSTS = Path("/etc/hosts")
RESOLV_CONF = Path("/etc/resolv.conf")
DNS_PORT = 53
MAX_MESSAGE_BYTES = 2048
"""Maximum size of a DNS message over TCP. It is read on the event loop: 64 KB take 100 ms, 2 KB take 3 ms."""
LIFETIME_SECONDS = 60.0
"""Longer than any caller waits."""
LOOPBACK = ("127.0.0.1", "::1")
DEFAULT_SERVER = "127.0.0.1"
"""The name server if resolv.conf names none, as in resolv.conf(5)."""

Content = TypeVar("Content")


class Names:
    """The names in `hosts` and in DNS, as configured in `resolv_conf`. Both files are read again when they change."""

    def __init__(self, hosts: Path = HOSTS, resolv_conf: Path = RESOLV_CONF, *, port: int = DNS_PORT) -> None:
        self._hosts = _CachedFile(hosts, _read_hosts)
        self._resolver = _CachedFile(resolv_conf, lambda path: _read_resolver(path, port))

    async def look_up(self, host: str) -> list[str]:
        """Return the addresses of a host in the order to try them; empty if it has none. Raises `ValueError`."""
        name = host.lower().rstrip(".")
        addresses = self._hosts.content().get(name, ())
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761: never asked for in DNS
            addresses = addresses or LOOPBACK
        if addresses:
            return [*addresses]
        resolver = self._resolver.content()
        ipv6, ipv4 = await asyncio.gather(*(_resolve(resolver, host, kind) for kind in ("AAAA", "A")))
        return [*ipv6, *ipv4] if ipv6 and _has_route(ipv6[0]) else [*ipv4, *ipv6]


class _CachedFile(Generic[Content]):
    """What `read` makes of a file, until the file changes."""

    def __init__(self, path: Path, read: Callable[[Path], Content]) -> None:
        self._path = path
        self._read = read
        self._version: tuple[int, int] | None = None
        self._content: Content | None = None

    def content(self) -> Content:
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_ino)
        except OSError:
            version = (0, 0)
        if self._content is None or version != self._version:
            self._content, self._version = self._read(self._path), version
        return self._content


def _read_hosts(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the addresses of the names in hosts(5)."""
    hosts: dict[str, tuple[str, ...]] = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return hosts
    for line in lines:
        address, *names = line.partition("#")[0].lower().split() or [""]
        for name in names:
            hosts[name.rstrip(".")] = (*hosts.get(name.rstrip("."), ()), address)
    return hosts


def _read_resolver(path: Path, port: int) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=False)
    servers = [DEFAULT_SERVER]
    try:
        resolver.read_resolv_conf(str(path))
        servers = [str(server) for server in resolver.nameservers]
    except (dns.resolver.NoResolverConfiguration, ValueError):
        pass  # the default server is asked
    resolver.nameservers = [BoundedNameserver(server, port) for server in servers]
    resolver.lifetime = LIFETIME_SECONDS
    return resolver


async def _resolve(resolver: dns.asyncresolver.Resolver, host: str, kind: str) -> list[str]:
    try:
        answer = await resolver.resolve(host, kind, search=True, raise_on_no_answer=False)
    except dns.exception.DNSException:  # the name does not exist or is invalid, or no server gave a valid answer
        return []
    return [record.address for record in answer]


def _has_route(address: str) -> bool:
    """Whether this machine can send to the IPv6 address. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect((address, DNS_PORT))
    except OSError:
        return False
    return True


class BoundedNameserver(dns.nameserver.Do53Nameserver):
    """A name server whose messages over TCP have at most `MAX_MESSAGE_BYTES`. Over UDP they have at most 512."""

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,  # noqa: ASYNC109
        source: str | None,
        source_port: int,
        max_size: bool,
        backend: Any,
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        """Send the request over TCP if `max_size` is true, which follows a truncated response, or else over UDP."""
        if not max_size:
            return await super().async_query(request, timeout, source, source_port, max_size, backend)
        try:
            async with asyncio.timeout(timeout):
                return await self._query_over_tcp(request)
        except TimeoutError:
            raise dns.exception.Timeout from None

    async def _query_over_tcp(self, request: dns.message.QueryMessage) -> dns.message.Message:
        reader, writer = await asyncio.open_connection(self.address, self.port)
        try:
            writer.write(request.to_wire(prepend_length=True))
            (size,) = struct.unpack("!H", await reader.readexactly(2))
            if size > MAX_MESSAGE_BYTES:
                raise dns.exception.FormError
            response = dns.message.from_wire(await reader.readexactly(size))
        finally:
            writer.close()
        if not request.is_response(response):
            raise dns.query.BadResponse
        return response
