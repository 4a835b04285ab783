"""Fixtures. Tests with a database run on SQLite and on PostgreSQL; `--database sqlite` selects one of them.

`client` calls the app as third-party tests do: without a lifespan, with `get_db` overridden, and with tables of
`create_all`. `live_client` uses the real sessions on a migrated database, for tests that need several connections.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from weakref import WeakSet

for name in (
    "CLERK_ISSUER",
    "DATABASE_URL",
    "ENV",
    "CORS_ORIGINS",
    "WEBHOOK_BASE_URL",
    "ENABLE_DOCS",
    "MAX_BODY_BYTES",
):
    os.environ.pop(name, None)
os.environ["DATABASE_URL"] = "sqlite+aiosqlite:///:memory:"

import httpx
import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import StaticPool

from bloxserver.settings import Settings, get_settings

Settings.model_config["env_file"] = None  # a developer's own .env does not reach the tests
get_settings.cache_clear()
# Without a configuration, structlog prints the variables of every frame with a traceback, which takes two seconds.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

from bloxserver.api.main import app
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Base, Database, get_db
from bloxserver.models.postgres import Timeouts
from bloxserver.models.tables import FlowRecord, UserRecord
from tests.database_override import override_database
from tests.factories import create_flow, create_user
from tests.postgres import (
    ReusedDatabase,
    delete_rows,
    end_sessions,
    maintenance,
    postgres_database,
    postgres_server,
    require_closed,
)
from tests.sqlite_threads import join_connection_threads

BACKENDS = ("sqlite", "postgresql")
PATIENCE_SECONDS = 30
"""The time for which transactions of tests wait for each other."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database", choices=BACKENDS, help="run tests that need a database only on this one")
    parser.addoption("--metering-kills", type=int, default=8, help="processes that the test of metering kills")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--database")
        metafunc.parametrize("backend", [chosen] if chosen else BACKENDS, scope="session")


@pytest.fixture(scope="session")
def postgres(testrun_uid: str) -> Iterator[sa.URL]:
    """The PostgreSQL server, shared by the processes of this run.

    Its directory is not in pytest's temporary directory, because other runs delete old directories there.
    """
    with postgres_server(Path(tempfile.gettempdir()) / f"bloxserver-postgres-{testrun_uid}") as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: sa.URL, worker_id: str) -> Iterator[str]:
    """A database of this process with the tables of the models. It is empty at the start of each test."""
    with postgres_database(postgres, f"tables_{worker_id}") as url:
        asyncio.run(create_tables(create_async_engine(url)))
        yield url


@pytest.fixture(scope="session")
def sqlite_tables() -> str:
    """The SQL statements of `create_all` for SQLite. Running them takes a tenth of the time of `create_all`."""
    with closing(sqlite3.connect(":memory:")) as connection:
        engine = sa.create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
        Base.metadata.create_all(engine)
        return ";".join(row[0] for row in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL"))


async def create_tables(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a migrated database to copy, because a migration takes longer than most tests."""
    directory = tmp_path_factory.mktemp("migrated")
    asyncio.run(migrate(Settings(database_url=f"sqlite+aiosqlite:///{directory}/test.db")))
    return directory


@pytest.fixture(scope="session")
def migrated_postgres(postgres: sa.URL, worker_id: str) -> Iterator[str]:
    """The name of a migrated database to copy."""
    name = f"migrated_{worker_id}"
    with postgres_database(postgres, name) as url:
        asyncio.run(migrate(Settings(database_url=url)))
        yield name


@pytest.fixture(scope="session")
def reused_postgres(postgres: sa.URL, migrated_postgres: str, worker_id: str) -> Iterator[ReusedDatabase]:
    """A migrated database that is empty at the start of each test."""
    database = ReusedDatabase(postgres, f"reused_{worker_id}", template=migrated_postgres)
    yield database
    database.drop()


async def migrate(settings: Settings) -> None:
    database = Database(settings)
    await database.migrate()
    await database.dispose()


@pytest.fixture
def backend_url(backend: str, request: pytest.FixtureRequest) -> str:
    """The URL for `create_all` tests: SQLite in memory, or the PostgreSQL database of this process."""
    if backend == "sqlite":
        return "sqlite+aiosqlite:///:memory:"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def database_engine(backend: str, backend_url: str, request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    """An engine as another program creates it: tables of `create_all`, without our event listeners and pragmas."""
    if backend == "sqlite":
        engine = create_async_engine(backend_url, poolclass=StaticPool)
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            await driver.executescript(request.getfixturevalue("sqlite_tables"))
    else:
        engine = create_async_engine(backend_url)
    yield engine
    await engine.dispose()
    await join_connection_threads()
    if backend == "postgresql":
        with maintenance(backend_url) as connection:
            left_open = end_sessions(connection)
            delete_rows(connection)
        require_closed(left_open)


@pytest.fixture
def sessions(database_engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(database_engine, expire_on_commit=False)


@pytest.fixture
async def session(sessions: async_sessionmaker[AsyncSession]) -> AsyncIterator[AsyncSession]:
    """A session for setup and checks. Requests see its changes only after a commit."""
    async with sessions() as session:
        yield session


@pytest.fixture
async def client(sessions: async_sessionmaker[AsyncSession]) -> AsyncIterator[httpx.AsyncClient]:
    """A client for the API without its lifespan, authenticated as the development user."""

    async def override() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            try:
                yield session
                await session.commit()
            except BaseException:
                await session.rollback()
                raise

    app.dependency_overrides[get_db] = override
    async with api_client() as client:
        yield client
    app.dependency_overrides.clear()


def api_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.fixture
async def dev_user(client: httpx.AsyncClient, session: AsyncSession) -> UserRecord:
    """The development user's row."""
    await client.get("/api/v1/me")
    user = await session.scalar(sa.select(UserRecord).where(UserRecord.clerk_id == "dev_user_001"))
    assert user is not None
    await session.commit()
    return user


@pytest.fixture
async def user(session: AsyncSession) -> UserRecord:
    """A user other than the development user."""
    return await create_user(session)


@pytest.fixture
async def flow(session: AsyncSession, user: UserRecord) -> FlowRecord:
    """A flow of `user`."""
    return await create_flow(session, user)


@pytest.fixture
def live_settings(backend: str, tmp_path: Path, worker_id: str, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings with short intervals. The database is migrated only if the test uses `live_database`."""
    migrated = "live_database" in request.fixturenames
    with ExitStack() as stack:
        if backend == "sqlite":
            if migrated:
                shutil.copytree(request.getfixturevalue("migrated_sqlite"), tmp_path, dirs_exist_ok=True)
            url = f"sqlite+aiosqlite:///{tmp_path}/test.db"
        else:
            if migrated:
                url = stack.enter_context(request.getfixturevalue("reused_postgres").lent())
            else:
                url = stack.enter_context(postgres_database(request.getfixturevalue("postgres"), f"live_{worker_id}"))
        # On a busy machine, many requests at once wait longer for a connection than the default allows.
        yield Settings(
            database_url=url,
            database_pool_timeout_seconds=PATIENCE_SECONDS,
            poll_interval_seconds=0.5,
            shutdown_grace_seconds=0.1,
        )


NEEDS_TRANSACTION = re.compile(r"^(INSERT|UPDATE|DELETE|WITH .*(INSERT|UPDATE|DELETE))|FOR .*(UPDATE|SHARE)|xact_lock")


def refuse_lock(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
    """Fail for a statement that needs a transaction: a session for reading has none."""
    assert not NEEDS_TRANSACTION.search(statement)


class SecondStatements:
    """Fails for the second statement of a connection whose statements are each their own transaction."""

    def __init__(self) -> None:
        self._seen: WeakSet[Any] = WeakSet()

    def refuse(self, connection: Any, *_: Any) -> None:
        assert connection not in self._seen
        self._seen.add(connection)


@pytest.fixture
async def live_database(live_settings: Settings) -> AsyncIterator[Database]:
    """A `Database` on a migrated database."""
    database = Database(live_settings, Timeouts(connect=PATIENCE_SECONDS, lock=PATIENCE_SECONDS))
    if not database.is_sqlite:  # SQLite refuses writes itself
        event.listen(database.reading_engine.sync_engine, "before_cursor_execute", refuse_lock)
        single_statements = database.single_statement_sessions.kw["bind"].sync_engine
        event.listen(single_statements, "before_cursor_execute", SecondStatements().refuse)
    yield database
    await database.dispose()
    await join_connection_threads()


@pytest.fixture
async def live_client(live_database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """The API on `live_database`, with the transactions of the real `get_db`."""
    with override_database(app, live_database):
        async with api_client() as client:
            yield client


@pytest.fixture
async def engine(live_settings: Settings, live_database: Database) -> AsyncIterator[Engine]:
    """An engine with a worker on `live_database`."""
    engine = Engine(live_settings, live_database, run_worker=True)
    await engine.start()
    yield engine
    await engine.stop()
