"""Resolves host names with a timeout and with each user's limit of concurrent lookups."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable

from bloxserver.clients.addresses import Address, read_address
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.shares import UNLIMITED, Share

RESOLVE_SECONDS = 10.0

Lookup = Callable[[str], Awaitable[Iterable[str]]]
"""Returns the addresses of a host name; none if it does not exist. Raises `ValueError` for an invalid name."""


class Resolver:
    """Resolves names. A lookup ends when its request is cancelled or the time limit is reached."""

    def __init__(self, lookup: Lookup | None = None, *, timeout_seconds: float = RESOLVE_SECONDS) -> None:
        """`lookup` is by default that of /etc/hosts and DNS."""
        self._lookup = lookup
        self._timeout_seconds = timeout_seconds

    async def resolve(self, host: str, share: Share = UNLIMITED) -> list[Address]:
        """Return the addresses of a host in the order to try them.

        The time limit includes the wait for a slot of the share. Raises `OutgoingRequestError` (`name_not_resolved`).
        """
        addresses = _parse_numeric(host)
        if not addresses:
            try:
                async with asyncio.timeout(self._timeout_seconds), share.lookup():
                    addresses = await self._look_up(host)
            except TimeoutError:
                message = f"{host} could not be resolved within {self._timeout_seconds:g} seconds"
                raise OutgoingRequestError("name_not_resolved", message) from None
        if not addresses:
            raise OutgoingRequestError("name_not_resolved", f"{host} has no address")
        return addresses

    async def _look_up(self, host: str) -> list[Address]:
        """Return the distinct addresses; empty if there is none."""
        if self._lookup is None:
            from bloxserver.clients.names import Names  # its DNS library is not needed before the first name

            self._lookup = Names().look_up
        try:
            return _distinct_addresses(await self._lookup(host))
        except ValueError:  # labels that are not valid in a domain name, answers that are not addresses
            return []


def _parse_numeric(host: str) -> list[Address]:
    """Parse a numeric address in any notation that the system accepts; empty for a name. Sends no query."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return _distinct_addresses(str(answer[4][0]) for answer in answers)
    except (OSError, ValueError):
        return []


def _distinct_addresses(texts: Iterable[str]) -> list[Address]:
    """Raises `ValueError` if a text is not an address."""
    return list(dict.fromkeys(read_address(text) for text in texts))
