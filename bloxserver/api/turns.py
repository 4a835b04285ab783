"""Lets the requests of each client address be handled in turns, so that no address delays the requests of others.

All requests share one event loop. An address with many connections can have hundreds of requests at the same time, and
a request of another address would wait for all of them at each of its steps.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from ipaddress import IPv4Network, IPv6Network

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bloxserver.api.addresses import address_key, parse_address
from bloxserver.api.hosts import PROBES

Networks = tuple[IPv4Network | IPv6Network, ...]
Key = tuple[str, bool]

MAX_TURN_SECONDS = 0.25
"""From then on a request does not count any more. It probably waits for something other than the event loop, and must
not delay other clients behind the same address.
"""

MIN_PAUSE_SECONDS = 0.02
PAUSE_FACTOR = 2
"""If more requests of an address wait and other addresses also send requests, each place of the address stays empty for
this multiple of the time that its last request took, and at least for the minimum. Otherwise an address that never
stops would always have the maximum of requests on the event loop.
"""
OTHERS_SECONDS = 1.0
"""How long requests of other addresses are remembered."""


class _Address:
    """The requests of one address that are handled, and the ones that wait for their turn."""

    def __init__(self) -> None:
        self.handled = 0
        self.waiting: deque[asyncio.Future[None]] = deque()


class Turns:
    """The requests of all addresses. At most `maximum` of each address are handled at the same time."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._addresses: dict[Key, _Address] = {}
        self._last = ""
        self._changed_at = float("-inf")

    def begin(self, key: Key) -> asyncio.Future[None] | None:
        """Count a request. Returns what it must wait for, or None."""
        if key[0] != self._last:
            self._last, self._changed_at = key[0], asyncio.get_running_loop().time()
        address = self._addresses.setdefault(key, _Address())
        if address.handled < self.maximum:
            address.handled += 1
            return None
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        address.waiting.append(turn)
        return turn

    def end(self, key: Key, pause: float = 0) -> None:
        """Stop counting a request, and let the next one begin, possibly after a pause."""
        loop = asyncio.get_running_loop()
        if pause and self._addresses[key].waiting and loop.time() - self._changed_at < OTHERS_SECONDS:
            loop.call_later(pause, self._begin_next, key)
        else:
            self._begin_next(key)

    def _begin_next(self, key: Key) -> None:
        address = self._addresses[key]
        while address.waiting:
            turn = address.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        address.handled -= 1
        if not address.handled:
            del self._addresses[key]


class _Turn:
    """The turn of one request. It ends once."""

    def __init__(self, turns: Turns, key: Key) -> None:
        self._turns = turns
        self._key = key
        self._ended = False
        # The time of uvloop stands still while a callback runs.
        self._began_at = time.perf_counter()
        self._timer = asyncio.get_running_loop().call_later(MAX_TURN_SECONDS, self._expire)

    def end(self) -> None:
        self._end(max(MIN_PAUSE_SECONDS, PAUSE_FACTOR * (time.perf_counter() - self._began_at)))

    def _expire(self) -> None:
        self._end(0)

    def _end(self, pause: float) -> None:
        if not self._ended:
            self._ended = True
            self._timer.cancel()
            self._turns.end(self._key, pause)


class RequestTurns:
    """The middleware. Probes wait only for other probes of their address. Proxies are clients without a limit."""

    def __init__(self, app: ASGIApp, turns: Turns, proxies: Networks = ()) -> None:
        self.app = app
        self._turns = turns
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = scope["client"][0] if scope.get("client") else None
        if scope["type"] != "http" or self._is_proxy(host):
            await self.app(scope, receive, send)
            return
        key = (address_key(host), scope["path"].startswith(PROBES))
        first = None
        waits_for = self._turns.begin(key)
        if waits_for is not None:
            await self._wait(waits_for, key)
        turn = _Turn(self._turns, key)
        try:
            if waits_for is not None:
                first = await receive()
                if first["type"] == "http.disconnect":
                    return  # nobody would read the response
            await self.app(scope, _ending(turn, receive, first), send)
        finally:
            turn.end()

    async def _wait(self, waits_for: asyncio.Future[None], key: Key) -> None:
        try:
            await waits_for
        except asyncio.CancelledError:
            if not waits_for.cancelled():  # the turn came before the cancellation
                self._turns.end(key)
            raise

    def _is_proxy(self, host: str | None) -> bool:
        address = parse_address(host) if self._proxies else None
        return address is not None and any(address in network for network in self._proxies)


def _ending(turn: _Turn, receive: Receive, first: Message | None) -> Receive:
    """Receive the messages of a request, after `first` if it is given.

    The turn ends when the application waits for the disconnect of the client, as open streams do.
    """
    complete = False

    async def next_message() -> Message:
        nonlocal first, complete
        if complete:
            turn.end()
        if first is not None:
            message, first = first, None
        else:
            message = await receive()
        complete = not message.get("more_body", False)
        return message

    return next_message
