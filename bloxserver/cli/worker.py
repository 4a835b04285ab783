"""`bloxserver worker`: a process that runs executions and does not serve the API."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import structlog

from bloxserver import __version__, gc_tuning
from bloxserver.cli.startup import fail, load_checked_settings, run
from bloxserver.settings import Settings, misspelt_settings

log = structlog.stdlib.get_logger("bloxserver")


def worker() -> None:
    """Run executions without serving the API. Needs PostgreSQL; any number of workers can run.

    Stops on SIGTERM or SIGINT. Running executions have SHUTDOWN_GRACE_SECONDS to end; another worker resumes the rest.
    If WORKER_PORT is set, the worker serves /health/live, /health/ready and /metrics on that port.
    """
    gc_tuning.pause()
    settings = load_checked_settings()
    if settings.uses_sqlite:
        fail("a worker needs PostgreSQL; with SQLite, `bloxserver serve` runs the executions")
    run(_work(settings), _loop_factory())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The factory of the event loop that also uvicorn uses; None for Python's own, where uvloop is not available."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


async def _work(settings: Settings) -> None:
    from bloxserver.api.main import prepare_database
    from bloxserver.api.worker_server import serve_worker_endpoints
    from bloxserver.engine.engine import Engine
    from bloxserver.models.database import database
    from bloxserver.observability.tracing import start_tracing, stop_tracing

    for line in [*misspelt_settings(), *settings.warnings()]:
        log.warning(line)
    start_tracing(settings)
    await prepare_database(settings, database)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    engine = Engine(settings, database, run_worker=True, kill_when_blocked=True)
    gc_tuning.freeze_heap()
    async with serve_worker_endpoints(settings, engine):
        await engine.start()
        log.info("worker ready", version=__version__, worker=engine.worker_id)
        await stopped.wait()
        await engine.stop()
    await database.dispose()
    await stop_tracing()
