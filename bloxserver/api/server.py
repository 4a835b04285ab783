"""The HTTP server of a process, with a graceful shutdown."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys

import structlog
import uvicorn
from fastapi import FastAPI

from bloxserver import __version__
from bloxserver.api.connection_limits import connection_limits
from bloxserver.api.connections import limited_protocol
from bloxserver.api.listener import Listener, Refusal, bound_sockets
from bloxserver.gc_tuning import freeze_heap
from bloxserver.settings import Settings, get_settings

log = structlog.stdlib.get_logger("bloxserver")

STARTUP_FAILURE = 3
"""The exit status if the server does not start; uvicorn uses the same one."""
STOP_SECONDS = 15
"""Seconds that open requests get when the server stops, in addition to the engine's shutdown."""
LAST_REQUESTS_SECONDS = 0.5
"""Seconds for which open connections still accept requests, because their clients do not detect a shutdown at once."""


class Server(uvicorn.Server):
    """Refuses connections above a limit at once, and responds at shutdown to requests that have already arrived.

    uvicorn would reset the connections of the latter.
    """

    def __init__(self, config: uvicorn.Config, refusal: Refusal = lambda address: None) -> None:
        super().__init__(config)
        self._refusal = refusal

    def run_or_exit(self) -> None:
        """Serve until a signal arrives. Exits the process with `STARTUP_FAILURE` if the server does not start."""
        self.run()
        if not self.started:
            sys.exit(STARTUP_FAILURE)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, listen, and only then log `ready`."""
        await super().startup(sockets=[])  # the app only
        freeze_heap()  # the start of the app has imported the engine
        try:
            bound = await bound_sockets(self.config.host, self.config.port)
        except OSError as error:
            self.started = False
            log.error("cannot listen", error=str(error))
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        self._listener = Listener(bound, self._protocol, self._refusal, self.config.backlog)
        self.servers = [self._listener]  # type: ignore[list-item]
        self._log_started_message(bound)
        host, port, *_ = bound[0].getsockname()
        _warn_of_open_access(get_settings(), host)
        log.info("ready", version=__version__, host=host, port=port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, close each connection with its next response, then stop as uvicorn does."""
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await self._listener.drain()
        await asyncio.sleep(LAST_REQUESTS_SECONDS)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def serving(app: str | FastAPI, host: str, port: int) -> Server:
    """The server of the API on this address; `app` is the application or its import path."""
    settings = get_settings()
    proxies = [str(network) for network in settings.forwarded_allow_ips]
    limits = connection_limits(settings)
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=limited_protocol(limits),
            ws="none",
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        ),
        limits.refusal,
    )


def _warn_of_open_access(settings: Settings, host: str) -> None:
    if settings.dev_bypass and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        log.warning(
            "anyone who can reach this address is the development user, without authentication: set CLERK_ISSUER, or "
            "HOST=127.0.0.1 to accept connections from this machine only",
            host=host,
        )
