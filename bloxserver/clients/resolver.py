"""Resolves host names with a timeout, in separate threads."""

from __future__ import annotations

import asyncio
import socket
from asyncio import Future
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Thread

from bloxserver.clients.addresses import Address, read_address
from bloxserver.clients.errors import OutgoingRequestError

RESOLVE_SECONDS = 10.0
MAX_LOOKUPS = 128

Lookup = Callable[[str], Iterable[str]]
"""A blocking function that returns the addresses of a host name. Raises `OSError` or `ValueError`."""


def system_lookup(host: str) -> list[str]:
    """Resolve a host name by the operating system. The addresses are in the order to try them."""
    return [str(answer[4][0]) for answer in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class Resolver:
    """Resolves each name in a separate thread. A resolver belongs to one event loop.

    A lookup cannot be interrupted. After the timeout its requests fail, but its thread runs, and counts towards
    `max_lookups`, until the operating system ends the lookup. asyncio's default executor is not used: it has few
    threads, and slow lookups would block its other users. The threads are daemons, so that a slow lookup does not delay
    the exit of the process. Concurrent requests for the same name share a lookup.
    """

    def __init__(
        self,
        lookup: Lookup = system_lookup,
        *,
        timeout_seconds: float = RESOLVE_SECONDS,
        max_lookups: int = MAX_LOOKUPS,
    ) -> None:
        self._lookup = lookup
        self._timeout_seconds = timeout_seconds
        self._slots = asyncio.Semaphore(max_lookups)
        self._running: dict[str, Future[list[Address]]] = {}

    async def resolve(self, host: str) -> list[Address]:
        """Return the addresses of a host in the order to try them.

        Raises `OutgoingRequestError` (`name_not_resolved`).
        """
        addresses = _parse_numeric(host)
        if not addresses:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    addresses = await self._look_up(host)
            except TimeoutError:
                message = f"{host} could not be resolved within {self._timeout_seconds:g} seconds"
                raise OutgoingRequestError("name_not_resolved", message) from None
        if not addresses:
            raise OutgoingRequestError("name_not_resolved", f"{host} has no address")
        return addresses

    async def _look_up(self, host: str) -> list[Address]:
        if host not in self._running:
            await self._slots.acquire()
            if host in self._running:  # another request started the lookup in the meantime
                self._slots.release()
            else:
                self._start(host)
        # Shielded, since other requests may wait for the same lookup.
        return await asyncio.shield(self._running[host])

    def _start(self, host: str) -> None:
        """Start the thread of a lookup, for which a slot is acquired."""
        loop = asyncio.get_running_loop()
        self._running[host] = future = loop.create_future()

        def finish(addresses: list[Address]) -> None:
            del self._running[host]
            self._slots.release()
            future.set_result(addresses)

        def run() -> None:
            addresses = _distinct_addresses(self._lookup, host)
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(finish, addresses)

        try:
            Thread(target=run, name="resolver", daemon=True).start()
        except RuntimeError:  # the system allows no more threads
            finish([])


def _parse_numeric(host: str) -> list[Address]:
    """Parse a numeric address in any notation that the system accepts; empty for a name. Sends no query."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        return []
    return _distinct_addresses(lambda _: (str(answer[4][0]) for answer in answers), host)


def _distinct_addresses(lookup: Lookup, host: str) -> list[Address]:
    """Return the distinct addresses that `lookup` finds; empty if it fails."""
    try:
        return list(dict.fromkeys(read_address(text) for text in lookup(host)))
    # ValueError: labels that are not valid in a domain name, answers that are not addresses.
    except (OSError, ValueError):
        return []
