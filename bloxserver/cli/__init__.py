"""The command line: `bloxserver serve`, `worker`, `migrate`, `status`, `prune`, `rotate_keys`, `demo`, `check`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Coroutine
from typing import IO, Annotated, Any, NoReturn

import structlog
import typer

from bloxserver import __version__
from bloxserver.errors import SettingsError
from bloxserver.observability.log import configure_logging
from bloxserver.settings import Settings, get_settings, misspelt_settings

log = structlog.stdlib.get_logger("bloxserver")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="A self-hosted control plane for AI-agent workflows. Settings come from the environment and from .env.",
)

ROTATION_BATCH = 100
"""Secrets in one transaction."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A self-hosted control plane for AI-agent workflows. Settings come from the environment and from .env."""


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to bind to. [default: HOST; in development 127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to bind to. [default: PORT, 8000]")] = None,
    worker: Annotated[
        bool | None,
        typer.Option("--worker/--no-worker", help="Also run executions in this process. [default: --worker]"),
    ] = None,
) -> None:
    """Serve the API and, unless told otherwise, run executions in the same process.

    In development the database is migrated first and, without CLERK_ISSUER, every request is the development user.
    In production the database must have been migrated with `bloxserver migrate`.
    """
    settings = _checked_settings()
    development = settings.env == "development"
    if host is None:
        host = "127.0.0.1" if development and "host" not in settings.model_fields_set else settings.host
    port = port or settings.port
    os.environ |= {"HOST": host, "PORT": str(port)}
    if worker is not None:
        os.environ["RUN_WORKER"] = str(worker)
    if development and "webhook_base_url" not in settings.model_fields_set:
        shown = "localhost" if host in ("0.0.0.0", "127.0.0.1", "::") else host  # noqa: S104
        os.environ["WEBHOOK_BASE_URL"] = f"http://{shown}:{port}/webhooks"
    get_settings.cache_clear()

    from bloxserver.api.server import serving

    lock = _lock(settings)
    _run(_check_schema(settings))
    # uvicorn raises the signal that stopped it once more when all is done: an orderly end is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    serving("bloxserver.api.main:app", host, port).run_or_exit()
    if lock is not None:
        lock.close()


def _lock(settings: Settings) -> IO[str] | None:
    """Keep other servers from a SQLite file: they would take each other's executions for left behind."""
    from bloxserver.cli.process_lock import DatabaseInUse, lock_database

    try:
        return lock_database(settings.database_url)
    except DatabaseInUse as error:
        _fail(f"another server (process {error}) has the database of DATABASE_URL: SQLite is for one at a time")


async def _check_schema(settings: Settings) -> None:
    """Said here in one line; the server would say it with a traceback."""
    from bloxserver.api.main import prepare_database
    from bloxserver.models.database import database

    try:
        await prepare_database(settings, database)
    finally:
        await database.dispose()


@app.command()
def worker() -> None:
    """Run executions, without the API: as many of these processes as you like, on PostgreSQL.

    Ends on SIGTERM or SIGINT. Running executions get SHUTDOWN_GRACE_SECONDS; then another worker resumes them. Where
    WORKER_PORT is set, the worker serves /health/live, /health/ready and /metrics there.
    """
    settings = _checked_settings()
    if settings.uses_sqlite:
        _fail("SQLite is for one process: `bloxserver serve` runs executions itself")
    _run(_work(settings))


async def _work(settings: Settings) -> None:
    from bloxserver.api.main import prepare_database
    from bloxserver.api.worker_server import serve_worker_endpoints
    from bloxserver.engine.engine import Engine
    from bloxserver.gc_tuning import freeze_heap
    from bloxserver.models.database import database
    from bloxserver.observability.tracing import start_tracing, stop_tracing

    for line in misspelt_settings():
        log.warning(line)
    start_tracing(settings)
    await prepare_database(settings, database)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    engine = Engine(settings, database, run_worker=True)
    freeze_heap()
    async with serve_worker_endpoints(settings, engine):
        await engine.start()
        log.info("worker ready", version=__version__, worker=engine.worker_id)
        await stopped.wait()
        await engine.stop()
    await database.dispose()
    await stop_tracing()


@app.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL to the newest schema.

    Safe to run again, and from several machines at once. Run it before serving a new version in production.
    """
    _readable_settings()
    _run(_migrate())


async def _migrate() -> None:
    from bloxserver.models.database import database
    from bloxserver.models.migrate import schema_state

    await database.migrate(lambda reason: typer.echo(f"bloxserver: {reason}", err=True))
    async with database.engine.connect() as connection:
        state = await connection.run_sync(schema_state)
    await database.dispose()
    typer.echo(f"database schema: {state.value}")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Print how the installation stands: workers, the queue of each tier, what has ended lately, schedules.

    Ends with status 1 where the database cannot be used, or executions wait and no worker lives.
    """
    _run(_status(_readable_settings(), as_json=as_json))


async def _status(settings: Settings, *, as_json: bool) -> None:
    from bloxserver.cli.status import json_of, lines_of, read_status
    from bloxserver.models.database import database

    try:
        found = await read_status(settings, database)
    finally:
        await database.dispose()
    typer.echo(json.dumps(json_of(found)) if as_json else "\n".join(lines_of(found)))
    if found.problems:
        raise typer.Exit(1)


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
) -> None:
    """Delete executions and versions that need not be kept any longer, as workers do every hour.

    EXECUTION_RETENTION_DAYS, EXECUTION_RETENTION_PER_FLOW and FLOW_VERSION_RETENTION say which. Safe to end at any time
    and to run again, also while servers run.
    """
    _run(_prune(_readable_settings(), dry_run=dry_run))


async def _prune(settings: Settings, *, dry_run: bool) -> None:
    from bloxserver.engine.background.retention import Retention
    from bloxserver.models.database import database

    pruned = await Retention(settings, database).prune(dry_run=dry_run)
    await database.dispose()
    verb = "would be deleted" if dry_run else "deleted"
    typer.echo(f"{verb}: {pruned.executions} executions, {pruned.steps} steps, {pruned.versions} versions")
    if pruned.lock_busy:
        typer.echo("another process is deleting at this moment: the rest is left to it")


@app.command()
def rotate_keys() -> None:
    """Seal all secrets anew with the first key of API_KEY_ENCRYPTION_KEY; after that the others can be removed.

    Safe to end at any time and to run again, also while servers run. Ends with status 1 where a secret could not be
    read.
    """
    _run(_rotate_keys(_readable_settings()))


async def _rotate_keys(settings: Settings) -> None:
    from bloxserver.encryption import cipher_of
    from bloxserver.models.database import database
    from bloxserver.services.secrets import rotate_stale

    cipher = cipher_of(settings)
    if cipher is None:
        raise SettingsError(["API_KEY_ENCRYPTION_KEY must be set"])
    rotated = unreadable = 0
    after = None
    while True:
        async with database.transaction() as session:
            batch = await rotate_stale(session, cipher, ROTATION_BATCH, after)
        rotated, unreadable, after = rotated + batch.rotated, unreadable + batch.unreadable, batch.last_id
        if after is None:
            break
    await database.dispose()
    typer.echo(f"sealed anew: {rotated}; not readable with any of the keys: {unreadable}")
    if unreadable:
        raise typer.Exit(1)


@app.command()
def demo() -> None:
    """Show the main job on a temporary server: flow, webhook, runs, a kill -9 in between, history, statistics.

    Ends with a non-zero status when anything is not as it should be.
    """
    from bloxserver.cli.demo import run_demo

    raise typer.Exit(run_demo())


@app.command()
def check(
    file: Annotated[typer.FileBinaryRead, typer.Argument(metavar="FILE", help="The organism; - reads standard input.")],
    settings: Annotated[
        bool,
        typer.Option("--settings/--no-settings", help="Also report what these settings lack. [default: --settings]"),
    ] = True,
) -> None:
    """Check an organism: print every problem with its line, its column and what to do.

    The settings are those of this installation: whether a language model and mail are configured is known from them.
    Which secrets are stored is not: POST /api/v1/organisms/validate knows it. Ends with status 1 when there is an
    error; warnings alone end with 0.
    """
    from bloxserver.blocks.registry import get_registry
    from bloxserver.services.validation import check_definition

    name = getattr(file, "name", "<stdin>")
    try:
        get_registry()
    except SettingsError as error:
        _fail(str(error))
    problems = check_definition(_readable_settings() if settings else None, file.read())
    for problem in problems:
        place = f"{name}:{problem.line}:{problem.column}"
        typer.echo(f"{place}: {problem.severity}: {problem.message} ({problem.hint}) [{problem.code}]")
    errors = sum(problem.severity == "error" for problem in problems)
    typer.echo(f"{name}: {errors} errors, {len(problems) - errors} warnings")
    raise typer.Exit(1 if errors else 0)


def _checked_settings() -> Settings:
    """The settings, or the end of the process with all that is wrong with them."""
    from bloxserver.blocks.registry import get_registry

    settings = get_settings()
    try:
        settings.check_startup()
        get_registry()
    except SettingsError as error:
        _fail(str(error))
    configure_logging(level=settings.log_level, as_json=settings.is_production)
    return settings


def _readable_settings() -> Settings:
    """The settings, for a command that needs no more than the database; warns of misspelt ones.

    Exits if one cannot be read.
    """
    settings = get_settings()
    if settings.problems:
        _fail(str(SettingsError(settings.problems)))
    for line in misspelt_settings():
        typer.echo(f"bloxserver: warning: {line}", err=True)
    # The command itself prints why it failed.
    configure_logging(level="ERROR", as_json=False)
    return settings


def _run(work: Coroutine[Any, Any, None]) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        asyncio.run(_orderly(work))
    except SettingsError as error:
        _fail(str(error))
    except (OSError, SQLAlchemyError) as error:
        from bloxserver.models.transient_errors import reason_of

        _fail(f"the database cannot be used: {reason_of(error)}")


async def _orderly(work: Coroutine[Any, Any, None]) -> None:
    """A SQLite file that cannot be opened leaves a thread behind, which has to tell this event loop of its end."""
    try:
        await work
    except Exception:
        for thread in threading.enumerate():
            if "_connection_worker_thread" in thread.name:
                await asyncio.to_thread(thread.join, 1)
        raise


def _fail(message: str) -> NoReturn:
    typer.echo(f"bloxserver: {message}", err=True)
    raise typer.Exit(1)
