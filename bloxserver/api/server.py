"""The HTTP server of a process, ended without breaking a request."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn

from bloxserver.gc_tuning import freeze_heap

STARTUP_FAILURE = 3
"""The exit status that uvicorn gives it."""
LAST_REQUESTS_SECONDS = 0.5
"""For requests that are on their way on connections that are open: their sender cannot know that they came too late."""


class Server(uvicorn.Server):
    """uvicorn resets connections whose request has arrived and was not read yet; here they are answered."""

    def run_or_exit(self) -> None:
        """Serve until a signal comes; ends the process where the app does not start."""
        self.run()
        if not self.started:
            sys.exit(STARTUP_FAILURE)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; the app is there by now, and has not begun."""
        freeze_heap()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, say with each answer that it is the connection's last, then end as uvicorn does."""
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        for connection in self._stop_listening():
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(LAST_REQUESTS_SECONDS)
        await super().shutdown(sockets)

    def _stop_listening(self) -> list[socket.socket]:
        """Returns the connections that wait to be accepted: closing the listener would reset them."""
        listeners = [listening.dup() for server in self.servers for listening in server.sockets]
        for server in self.servers:
            server.close()
        waiting: list[socket.socket] = []
        for listener in listeners:
            with listener:  # from here on it is what listens
                listener.setblocking(False)
                while (connection := _accepted(listener)) is not None:
                    waiting.append(connection)
        return waiting

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _accepted(listener: socket.socket) -> socket.socket | None:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return None
    return connection
