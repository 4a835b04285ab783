"""What a worker serves: whether it lives, whether it works, and its metrics; no API."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
import uvicorn
from fastapi import FastAPI

from bloxserver.api.dependencies import WorkingEngine
from bloxserver.api.errors import install_error_handlers
from bloxserver.api.middleware import BodyLimit, ErrorMiddleware, RequestContext
from bloxserver.api.routes import health, metrics
from bloxserver.errors import SettingsError
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver")

CLOSING_SECONDS = 2
"""What open requests get when the worker ends."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the worker's, which has to drain.
        yield


def create_worker_app(engine: WorkingEngine) -> FastAPI:
    """The routes of a worker."""
    app = FastAPI(title="BloxServer worker", openapi_url=None)
    app.state.engine = engine
    app.include_router(health.router)
    app.include_router(metrics.router)
    install_error_handlers(app)
    for middleware in (BodyLimit, ErrorMiddleware, RequestContext):
        app.add_middleware(middleware)
    return app


@asynccontextmanager
async def serve_worker_endpoints(settings: Settings, engine: WorkingEngine) -> AsyncIterator[None]:
    """Serve them within the block, where a port is set. Raises `SettingsError` where it cannot be had."""
    if settings.worker_port is None:
        yield
        return
    config = uvicorn.Config(
        create_worker_app(engine),
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    with _listener(settings.worker_host, settings.worker_port) as listener:
        # asyncio leaves it to a socket that it has not made: head and body of an answer would wait for each other.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port, *_ = listener.getsockname()
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        log.info("health and metrics are served", host=host, port=port)
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
        raise SettingsError([f"WORKER_HOST, WORKER_PORT: cannot listen there ({reason})"]) from None
