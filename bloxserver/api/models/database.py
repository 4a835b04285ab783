"""The database: engine, sessions, transactions.

One request or one step of the engine is one transaction; only `get_db` and `Database.transaction` end one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool

from bloxserver.api.models import migrate
from bloxserver.api.models.base import Base
from bloxserver.settings import Settings, get_settings

__all__ = ["Base", "Database", "async_session_maker", "engine", "get_db", "get_db_context", "init_db"]

SQLITE_BUSY_TIMEOUT_SECONDS = 15
POSTGRES_LOCK_TIMEOUT_MS = 5_000
POSTGRES_STATEMENT_TIMEOUT_MS = 30_000
_READ_ONLY = "sqlite_read_only"
_WAKE = "bloxserver_wake_engine"

read_only_request: ContextVar[bool] = ContextVar("read_only_request", default=False)
"""Set by the API for requests that are expected to read only."""


class Database:
    """An engine and its session makers. `sessions` may write, `reading_sessions` take no write lock on SQLite."""

    def __init__(self, settings: Settings) -> None:
        self.engine = _create_engine(settings)
        self._session_class = type("DatabaseSession", (Session,), {})
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False, sync_session_class=self._session_class)
        self.reading_sessions = async_sessionmaker(
            self.engine.execution_options(**{_READ_ONLY: True}),
            expire_on_commit=False,
            sync_session_class=self._session_class,
            info={_READ_ONLY: self.engine},
        )

    @asynccontextmanager
    async def transaction(self, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        """A session whose work is committed at the end of the block, or undone when the block raises."""
        async with (self.reading_sessions if read_only else self.sessions)() as session:
            try:
                yield session
            except BaseException:
                await session.rollback()
                raise
            await session.commit()

    def request_transaction(self) -> AbstractAsyncContextManager[AsyncSession]:
        """The transaction of the request that is being served."""
        return self.transaction(read_only=read_only_request.get())

    async def migrate(self) -> None:
        """Bring the schema to the newest revision."""
        async with self.engine.connect() as connection:
            await connection.run_sync(migrate.upgrade)
            await connection.commit()

    def on_commit(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after each commit that left work for the engine; returns what ends that."""

        def after_commit(session: Session) -> None:
            # A released savepoint fires too, but its work is not yet to be seen.
            if not session.in_nested_transaction() and session.info.pop(_WAKE, False):
                wake()

        event.listen(self._session_class, "after_commit", after_commit)
        return lambda: event.remove(self._session_class, "after_commit", after_commit)


def wake_engine_after_commit(session: AsyncSession) -> None:
    """Say that this transaction leaves work for the engine."""
    session.info[_WAKE] = True


async def begin_writing(session: AsyncSession) -> None:
    """Let a session that was opened for reading write.

    On SQLite a transaction that has read cannot become a writing one once another has written, so the reading one
    ends here: what was read before may have changed and has to be read again. Other sessions are left as they are.
    """
    engine: AsyncEngine | None = session.info.pop(_READ_ONLY, None)
    if engine is not None:
        await session.rollback()
        session.sync_session.bind = engine.sync_engine


def _create_engine(settings: Settings) -> AsyncEngine:
    url = sa.make_url(settings.database_url)
    options: dict[str, Any] = {"echo": settings.sql_echo, "hide_parameters": True}
    if not settings.uses_sqlite:
        return create_async_engine(
            url,
            pool_size=settings.database_pool_size,
            max_overflow=0,
            pool_timeout=settings.database_pool_timeout_seconds,
            pool_pre_ping=True,
            connect_args={
                "timeout": 5,
                "server_settings": {
                    "application_name": "bloxserver",
                    "timezone": "UTC",
                    "lock_timeout": str(POSTGRES_LOCK_TIMEOUT_MS),
                    "statement_timeout": str(POSTGRES_STATEMENT_TIMEOUT_MS),
                },
            },
            **options,
        )
    in_memory = url.database in (None, "", ":memory:")
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        # An in-memory database lives in its one connection, which transactions then take in turn.
        pool_size=1 if in_memory else settings.database_pool_size,
        max_overflow=0,
        pool_timeout=SQLITE_BUSY_TIMEOUT_SECONDS,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS},
        **options,
    )
    event.listen(engine.sync_engine, "connect", _set_up_sqlite_connection)
    event.listen(engine.sync_engine, "begin", _begin_on_sqlite)
    return engine


def _set_up_sqlite_connection(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction: `_begin_on_sqlite` does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_on_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails with "database is locked" when another wrote in between.
    reads_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


database = Database(get_settings())
engine = database.engine
async_session_maker = database.sessions


async def get_db() -> AsyncIterator[AsyncSession]:
    """The session of a request: committed before the response is sent, rolled back when the request fails."""
    async with database.request_transaction() as session:
        yield session


@asynccontextmanager
async def get_db_context() -> AsyncIterator[AsyncSession]:
    """A session outside of a request, committed at the end of the block."""
    async with database.transaction() as session:
        yield session


async def init_db() -> None:
    """Create the tables of the running app's database, or bring them up to date."""
    await database.migrate()
