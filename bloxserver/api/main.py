"""The application: `uvicorn bloxserver.api.main:app`, or `python -m bloxserver.api.main`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI

from bloxserver import __version__
from bloxserver.account_emails.rendering import check_templates
from bloxserver.api.cors import Cors
from bloxserver.api.errors import install_error_handlers
from bloxserver.api.hosts import TrustedHosts
from bloxserver.api.middleware import BodyLimit, ErrorMiddleware, RequestContext
from bloxserver.api.openapi import AUTHENTICATED_PREFIX, install_openapi
from bloxserver.api.paths import PathMethods, PathTable, RouteIndex
from bloxserver.api.rate_limits import HEADERS, RateLimits, sharing_counters
from bloxserver.api.routes import AUTHENTICATED, DOCUMENTATION, OPENAI, PUBLIC
from bloxserver.api.shutdown import Shutdown
from bloxserver.api.stream_slots import StreamSlots
from bloxserver.api.turns import RequestTurns, Turns
from bloxserver.api.watching import ExecutionWatcher
from bloxserver.api.webhook_route import WebhookRoute
from bloxserver.errors import SettingsError
from bloxserver.model_catalogue import operator_secrets
from bloxserver.models import database as models_database
from bloxserver.models.database import Database
from bloxserver.models.migrate import SchemaState, schema_state
from bloxserver.models.sqlite_connection import shorten_switch_interval
from bloxserver.observability.log import configure_logging
from bloxserver.observability.tracing import start_tracing, stop_tracing
from bloxserver.plans_file import use_plans_file
from bloxserver.services.rate_limits import RateLimiter
from bloxserver.settings import Settings, get_settings, misspelt_settings

log = structlog.stdlib.get_logger("bloxserver")


def create_app() -> FastAPI:
    """Create the API. Its lifespan migrates or checks the database and runs the engine."""
    settings = get_settings()
    app = FastAPI(
        title="BloxServer API",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.enable_docs else None,
        redirect_slashes=False,
        lifespan=_lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the middleware has its own
    )
    at_root = [*PUBLIC, *OPENAI, *(DOCUMENTATION if settings.enable_docs else [])]
    for router in at_root:
        app.include_router(router)
    for router in AUTHENTICATED:
        app.include_router(router, prefix=AUTHENTICATED_PREFIX)
    table = PathTable()
    table.add(at_root)
    table.add(AUTHENTICATED, AUTHENTICATED_PREFIX)
    app.router.routes[:0] = [WebhookRoute(), RouteIndex(app.router)]
    app.state.shutdown = Shutdown()
    app.state.kill_when_blocked = False
    """Whether this process is killed if its event loop is blocked. `bloxserver serve` sets it."""
    app.state.is_database_prepared = False
    """Whether `prepare_database` was called before the start. `bloxserver serve` sets it."""
    app.state.watcher = ExecutionWatcher()
    app.state.stream_slots = StreamSlots()
    install_error_handlers(app)
    install_openapi(app)
    # The middleware that is added last is the outermost.
    app.add_middleware(PathMethods, table=table)
    app.add_middleware(BodyLimit)
    app.add_middleware(TrustedHosts)
    app.add_middleware(ErrorMiddleware)
    app.state.rate_limiter = RateLimiter() if settings.limits_rates else None
    if app.state.rate_limiter is not None:
        app.add_middleware(RateLimits, limiter=app.state.rate_limiter)
    app.add_middleware(
        Cors,
        allow_origins=list(settings.cors_origins),
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["ETag", "Idempotent-Replayed", "Link", "X-Request-Id", "Retry-After", *HEADERS],
    )
    app.add_middleware(
        RequestTurns, turns=Turns(settings.max_requests_per_address), proxies=settings.forwarded_allow_ips
    )
    app.add_middleware(RequestContext)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Blocks and engine are half of all modules. Only a process that starts needs them, not one that imports `app`.
    from bloxserver.blocks.registry import get_registry
    from bloxserver.engine.engine import Engine
    from bloxserver.llm.gateway import LanguageModels

    settings = get_settings()
    settings.check_startup()
    secrets = operator_secrets(settings)
    configure_logging(level=settings.log_level, as_json=settings.is_production, secrets=secrets)
    use_plans_file(settings.plans_file)
    check_templates(settings.email_templates_dir)
    if settings.uses_sqlite:
        shorten_switch_interval()
    get_registry()  # an unusable block of an installed package must stop the start of the server, not fail flows later
    _warn(settings)
    start_tracing(settings)
    database = models_database.database
    if not app.state.is_database_prepared:
        await prepare_database(settings, database)
    engine = Engine(
        settings,
        database,
        run_worker=settings.run_worker,
        kill_when_blocked=app.state.kill_when_blocked,
        watcher=app.state.watcher,
    )
    app.state.engine = engine if settings.run_worker else None
    app.state.language_models = models = LanguageModels(settings, database)
    await engine.start()
    log.info("application started", version=__version__, env=settings.env, worker=settings.run_worker)
    app.state.shutdown = Shutdown()
    try:
        with app.state.shutdown.on_signals():
            async with sharing_counters(app.state.rate_limiter, settings, database):
                yield
    finally:
        await engine.stop()
        app.state.engine = None
        app.state.language_models = None
        await models.aclose()
        await database.dispose()
        await stop_tracing()


async def prepare_database(settings: Settings, database: Database) -> None:
    """Migrate the database if that is enabled. Otherwise raise `SettingsError` if its schema is older than the code.

    A newer schema is accepted: in a rolling deploy, the new version migrates while the old version still runs.
    """
    if settings.auto_create_tables and not settings.is_production:
        await database.migrate()
        return
    async with database.engine.connect() as connection:
        state = await connection.run_sync(schema_state)
    if state is SchemaState.OLDER or (state is SchemaState.MISSING and settings.is_production):
        raise SettingsError([f"the database's schema is {state.value}: run `bloxserver migrate` first"])


def _warn(settings: Settings) -> None:
    for line in [*misspelt_settings(), *settings.warnings()]:
        log.warning(line)
    if settings.dev_bypass:
        log.warning("authentication disabled: every request is the development user", clerk_issuer=None)


app = create_app()

if __name__ == "__main__":
    from bloxserver.api.server import serving

    serving(app, get_settings().host, get_settings().port).run_or_exit()
