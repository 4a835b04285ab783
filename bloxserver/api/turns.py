"""Lets the requests of each client address be handled in turns, so that no address delays the requests of others.

All requests share one event loop. An address with many connections can have hundreds of requests at the same time, and
a request of another address would wait for all of them at each of its steps.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from http import HTTPStatus
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
"""If the process is busy and other addresses also send requests, a place of an address stays empty for this multiple of
the time that its last request took, and at least for the minimum. This applies while more requests of the address wait,
and after each error. Otherwise an address that never stops would always have the maximum of requests on the event loop.
"""
BUSY = 0.6
"""The process is busy if it needs this part of a core."""
SAMPLE_SECONDS = 0.05
OTHERS_SECONDS = 1.0
"""How long requests of other addresses are remembered."""


class _Address:
    """The requests of one address that are handled, and the ones that wait for their turn."""

    def __init__(self) -> None:
        self.handled = 0
        self.waiting: deque[asyncio.Future[None]] = deque()


class ProcessLoad:
    """Measures which part of a core the process has used lately."""

    def __init__(self) -> None:
        self._sampled_at = (time.perf_counter(), time.process_time())
        self._load = 0.0

    def is_busy(self) -> bool:
        moment = time.perf_counter()
        seconds = moment - self._sampled_at[0]
        if seconds >= SAMPLE_SECONDS:
            used = time.process_time()  # a system call, unlike the clock
            self._load = (used - self._sampled_at[1]) / seconds
            self._sampled_at = moment, used
        return self._load >= BUSY


class Turns:
    """The requests of all addresses. At most `maximum` of each address are handled at the same time."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._load = ProcessLoad()
        self._reset(None)

    def _reset(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._addresses: dict[Key, _Address] = {}
        self._last = ""
        self._changed_at = float("-inf")

    def begin(self, key: Key) -> asyncio.Future[None] | None:
        """Count a request. Returns what it must wait for, or None."""
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._reset(loop)  # another loop, as in the next test: the requests of the last one do not end any more
        if key[0] != self._last:
            self._last, self._changed_at = key[0], loop.time()
        address = self._addresses.setdefault(key, _Address())
        if address.handled < self.maximum:
            address.handled += 1
            return None
        turn: asyncio.Future[None] = loop.create_future()
        address.waiting.append(turn)
        return turn

    def end(self, key: Key, pause: float = 0, *, failed: bool = False) -> None:
        """Stop counting a request, and let the next one begin, possibly after a pause."""
        loop = asyncio.get_running_loop()
        others_send = loop.time() - self._changed_at < OTHERS_SECONDS
        sends_much = failed or self._addresses[key].waiting
        if self._load.is_busy() and pause and others_send and sends_much:
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

    def end(self, *, failed: bool = False) -> None:
        self._end(max(MIN_PAUSE_SECONDS, PAUSE_FACTOR * (time.perf_counter() - self._began_at)), failed)

    def _expire(self) -> None:
        self._end(0, False)

    def _end(self, pause: float, failed: bool) -> None:
        if not self._ended:
            self._ended = True
            self._timer.cancel()
            self._turns.end(self._key, pause, failed=failed)


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
        first: asyncio.Task[Message] | None = None
        waits_for = self._turns.begin(key)
        if waits_for is not None:
            await self._wait(waits_for, key)
        turn = _Turn(self._turns, key)
        failed = False

        async def observe(message: Message) -> None:
            nonlocal failed
            if message["type"] == "http.response.start":
                failed = message["status"] >= HTTPStatus.BAD_REQUEST
            await send(message)

        try:
            if waits_for is not None:
                first = asyncio.create_task(_receive(receive))
                await asyncio.sleep(0)  # enough for what has been received; the application limits the time of the rest
                if first.done() and first.result()["type"] == "http.disconnect":
                    return  # the client has disconnected
            await self.app(scope, _ending(turn, receive, first), observe)
        finally:
            if first is not None:
                first.cancel()
            turn.end(failed=failed)

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


async def _receive(receive: Receive) -> Message:
    return await receive()


def _ending(turn: _Turn, receive: Receive, first: asyncio.Task[Message] | None) -> Receive:
    """Receive the messages of a request, from `first` if it is given.

    The turn ends when the application waits for the disconnect of the client, as open streams do.
    """
    complete = False

    async def next_message() -> Message:
        nonlocal first, complete
        if complete:
            turn.end()
        received, first = first, None
        message = await (receive() if received is None else received)
        complete = not message.get("more_body", False)
        return message

    return next_message
