"""The HTTP endpoints of a worker: health checks and metrics."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
import uvicorn
from fastapi import FastAPI

from bloxserver.api.connection_limits import connection_limits
from bloxserver.api.connections import limited_protocol
from bloxserver.api.dependencies import EngineHealth
from bloxserver.api.errors import install_error_handlers
from bloxserver.api.middleware import BodyLimit, ErrorMiddleware, RequestContext
from bloxserver.api.paths import PathMethods, PathTable
from bloxserver.api.routes import health, metrics
from bloxserver.errors import SettingsError
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver")

SHUTDOWN_GRACE_SECONDS = 2
"""Seconds that open requests get when the worker stops."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The worker handles signals, for its own graceful shutdown.
        yield


def create_worker_app(engine: EngineHealth) -> FastAPI:
    """Create the app with the routes of a worker."""
    app = FastAPI(title="BloxServer worker", openapi_url=None, redirect_slashes=False)
    app.state.engine = engine
    app.include_router(health.router)
    app.include_router(metrics.router)
    install_error_handlers(app)
    table = PathTable()
    table.add([health.router, metrics.router])
    app.add_middleware(PathMethods, table=table)
    for middleware in (BodyLimit, ErrorMiddleware, RequestContext):
        app.add_middleware(middleware)
    return app


@asynccontextmanager
async def serve_worker_endpoints(settings: Settings, engine: EngineHealth) -> AsyncIterator[None]:
    """Serve the endpoints within the block if `WORKER_PORT` is set. Raises `SettingsError` if the port is in use."""
    if settings.worker_port is None:
        yield
        return
    config = uvicorn.Config(
        create_worker_app(engine),
        http=limited_protocol(connection_limits(settings)),
        ws="none",
        proxy_headers=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_SECONDS,
    )
    with _listener(settings.worker_host, settings.worker_port) as listener:
        # asyncio sets it only on sockets that it creates. Without it, a response's body waits for the ACK of its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port, *_ = listener.getsockname()
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        log.info("worker endpoints ready", host=host, port=port)
        try:
            yield
        finally:
            server.should_exit = True
            await serving


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise SettingsError([f"WORKER_HOST, WORKER_PORT: cannot listen on this address ({reason})"]) from None
