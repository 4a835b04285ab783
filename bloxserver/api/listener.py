"""Accepts connections, and refuses those above a limit before they cost more than the system call.

The event loops accept all connections that wait, and make a transport and a protocol for each. A client that opens a
thousand connections per second would occupy the loop with connections that are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Sequence

import structlog

log = structlog.stdlib.get_logger("bloxserver")

MAX_ACCEPTED = 16
MAX_REFUSED = 64
"""Connections that are accepted, and refused, in one iteration of the event loop. A refusal takes about 25 µs."""
PAUSE_SECONDS = 1.0
"""Time without accepting if the process has no more open files or memory."""
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
MAX_DISCARDED = 65_536
"""Bytes of a refused request that are read. The system resets a connection that is closed with unread bytes, and the
client could not read the response.
"""

Refusal = Callable[[str], bytes | None]
"""Returns the response with which to refuse a connection from an address, or None to accept it."""


class Listener:
    """Listens on bound sockets. Has the methods of `asyncio.Server` that uvicorn calls."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        protocol: Callable[[], asyncio.Protocol],
        refusal: Refusal,
        backlog: int,
    ) -> None:
        self.sockets = tuple(sockets)
        self._protocol = protocol
        self._refusal = refusal
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}
        for listening in self.sockets:
            listening.setblocking(False)
            listening.listen(backlog)
            self._loop.add_reader(listening, self._accept_some, listening)

    def close(self) -> None:
        """Stop listening. Connections that wait to be accepted are reset."""
        for listening in self.sockets:
            if listening.fileno() >= 0:
                self._stop_accepting(listening)
                listening.close()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    async def drain(self) -> None:
        """Accept the connections that wait, and stop listening."""
        for listening in self.sockets:
            self._stop_accepting(listening)
            while self._accept(listening) is not None:
                pass
        self.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept_some(self, listening: socket.socket) -> None:
        accepted = refused = 0
        while accepted < MAX_ACCEPTED and refused < MAX_REFUSED:
            outcome = self._accept(listening)
            if outcome is None:
                return
            accepted += outcome
            refused += not outcome

    def _accept(self, listening: socket.socket) -> bool | None:
        """Accept or refuse one connection. Returns whether it was accepted; None if no connection waits."""
        try:
            connection, address = listening.accept()
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionAbortedError:
            return False
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            log.error("cannot accept connections", error=errno.errorcode[error.errno])
            self._pause(listening)
            return None
        response = self._refusal(address[0])
        if response is not None:
            _refuse(connection, response)
            return False
        task = self._loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _connect(self, connection: socket.socket) -> None:
        try:
            # Without it, a response's body waits for the acknowledgement of its head.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # the client has disconnected
            connection.close()

    def _pause(self, listening: socket.socket) -> None:
        if self._loop.remove_reader(listening):
            self._timers[listening] = self._loop.call_later(PAUSE_SECONDS, self._continue, listening)

    def _continue(self, listening: socket.socket) -> None:
        del self._timers[listening]
        self._loop.add_reader(listening, self._accept_some, listening)

    def _stop_accepting(self, listening: socket.socket) -> None:
        self._loop.remove_reader(listening)
        timer = self._timers.pop(listening, None)
        if timer is not None:
            timer.cancel()


def _refuse(connection: socket.socket, response: bytes) -> None:
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(response)
        connection.recv(MAX_DISCARDED)


async def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind to all addresses of `host`. Raises `OSError`."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    sockets = [bound.dup() for bound in server.sockets]
    server.close()
    return sockets
