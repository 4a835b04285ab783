"""`bloxserver serve`: the API and, by default, a worker in one process."""

from __future__ import annotations

import os
import signal
from typing import IO, Annotated

import typer

from bloxserver import gc_tuning
from bloxserver.cli.startup import fail, load_checked_settings, run
from bloxserver.settings import Settings, get_settings


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to bind to.", show_default="HOST; in development 127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to bind to.", show_default="PORT")] = None,
    worker: Annotated[
        bool | None,
        typer.Option("--worker/--no-worker", help="Run executions in this process too.", show_default="RUN_WORKER"),
    ] = None,
) -> None:
    """Serve the API and, unless --no-worker is given, run executions in the same process.

    Outside production, the command first migrates the database, unless AUTO_CREATE_TABLES=false. In production, run
    `bloxserver migrate` before this command. In development without CLERK_ISSUER, every request is authenticated as the
    development user.
    """
    gc_tuning.pause()
    settings = load_checked_settings()
    development = settings.env == "development"
    if host is None:
        host = "127.0.0.1" if development and "host" not in settings.model_fields_set else settings.host
    port = port or settings.port
    os.environ |= {"HOST": host, "PORT": str(port)}
    if worker is not None:
        os.environ["RUN_WORKER"] = str(worker)
    if development and "webhook_base_url" not in settings.model_fields_set:
        public_host = "localhost" if host in ("0.0.0.0", "127.0.0.1", "::") else host  # noqa: S104  # nosec B104
        os.environ["WEBHOOK_BASE_URL"] = f"http://{public_host}:{port}/webhooks"
    get_settings.cache_clear()

    from bloxserver.api.main import app
    from bloxserver.api.server import serving

    app.state.kill_when_blocked = True
    lock = _lock(settings)
    run(_prepare_database(settings))
    app.state.is_database_prepared = True
    # After a graceful shutdown uvicorn raises the signal that stopped it again. The exit status must be 0 nevertheless.
    signal.signal(signal.SIGTERM, lambda *_: None)
    serving(app, host, port).run_or_exit()
    if lock is not None:
        lock.close()


def _lock(settings: Settings) -> IO[str] | None:
    """Lock a SQLite file against other servers, which would recover each other's running executions."""
    from bloxserver.cli.process_lock import DatabaseInUse, lock_database

    try:
        return lock_database(settings.database_url)
    except DatabaseInUse as error:
        fail(f"another server (process {error}) uses the database of DATABASE_URL; SQLite supports one server")


async def _prepare_database(settings: Settings) -> None:
    """Prepare the database here, where a failure prints one line; the server would print a traceback."""
    from bloxserver.api.main import prepare_database
    from bloxserver.models.database import database

    try:
        await prepare_database(settings, database)
    finally:
        await database.dispose()
