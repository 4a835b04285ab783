"""The database: engine, sessions, transactions.

One request or one step of the engine is one transaction; only `get_db` and `Database.transaction` end one.
"""

from __future__ import annotations

import asyncio
import enum
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection, QueuePool

from bloxserver.models import migrate, postgres, postgres_connect
from bloxserver.models.base import Base
from bloxserver.models.transient_errors import is_connection_error, reason_of
from bloxserver.observability import metrics
from bloxserver.settings import Settings, get_settings

log = structlog.stdlib.get_logger("bloxserver.database")

__all__ = ["Base", "Database", "async_session_maker", "engine", "get_db", "get_db_context", "init_db"]

SQLITE_BUSY_TIMEOUT_SECONDS = 15
MIGRATION_LOCK = 0x626C6F78
"""The advisory lock on PostgreSQL that a process holds while it migrates."""
MIGRATION_POLL_SECONDS = 0.5
"""The time between two attempts to take the migration lock."""
WRITING, READING = "writing", "reading"
"""Names of pools. On PostgreSQL one serves for both."""
_WRITING_ENGINE = "bloxserver_writing_engine"
_WAKE = "bloxserver_wake_engine"
_THEN = "bloxserver_after_commit"

read_only_request: ContextVar[bool] = ContextVar("read_only_request", default=False)
"""Set by the API for requests that are expected to read only."""


class WakeReason(enum.StrEnum):
    """What a transaction may leave to be done."""

    EXECUTION = "execution"
    """An execution is due, or a place is free for another."""
    FLOW = "flow"
    """A flow is to be started or stopped, or a schedule to be given its time."""
    CANCELLATION = "cancellation"
    """What a worker may be running was ended by somebody else."""
    NOTIFICATION = "notification"
    """A failure notice is due."""


class InstrumentedPool(AsyncAdaptedQueuePool):
    """Tells how long it let those wait who want a connection."""

    def connect(self) -> PoolProxiedConnection:
        began = time.perf_counter()
        try:
            return super().connect()
        finally:
            metrics.POOL_WAIT_SECONDS.labels(self.logging_name).observe(time.perf_counter() - began)


class _Availability:
    """Logs once that the database became unavailable, and once that it is available again."""

    def __init__(self) -> None:
        self._lost_at: float | None = None

    def failed(self, error: BaseException) -> None:
        if self._lost_at is None and is_connection_error(error):
            self._lost_at = time.monotonic()
            log.warning("database connection lost", reason=reason_of(error))

    def succeeded(self) -> None:
        if self._lost_at is not None:
            log.info("database connection restored", seconds=round(time.monotonic() - self._lost_at, 1))
            self._lost_at = None


class Database:
    """Engines and session makers. `sessions` may write; `reading_sessions` do not wait for a writer on SQLite."""

    def __init__(self, settings: Settings, waits: postgres.Waits = postgres.DEFAULT_WAITS) -> None:
        self._settings = settings
        self._waits = waits
        self.engine = _create_engine(settings, waits)
        self._reading_engine = self.engine
        if settings.uses_sqlite and not _is_in_memory(settings):
            self._reading_engine = _create_sqlite_engine(settings, pool_size=settings.database_pool_size, writes=False)
        self._availability = _Availability()
        self._session_class = type("DatabaseSession", (Session,), {})
        event.listen(self._session_class, "after_commit", _call_after_commit)
        event.listen(self._session_class, "after_rollback", lambda session: session.info.pop(_THEN, None))
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False, sync_session_class=self._session_class)
        self.reading_sessions = async_sessionmaker(
            self._reading_engine,
            expire_on_commit=False,
            sync_session_class=self._session_class,
            info={_WRITING_ENGINE: self.engine},
        )

    def driver_arguments(self) -> dict[str, Any]:
        """What the driver of PostgreSQL makes such a connection from, where there is no SQLAlchemy."""
        return postgres.driver_arguments(self.engine, self._settings.database_statement_timeout_seconds, self._waits)

    def pools(self) -> Mapping[str, QueuePool]:
        """The pools of connections, by what they are called in metrics."""
        pools = (self.engine.pool, self._reading_engine.pool)
        return {str(pool.logging_name): pool for pool in pools if isinstance(pool, QueuePool)}

    async def dispose(self) -> None:
        """Close all connections; those to a server that does not answer are given up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._waits.close):
                await self.engine.dispose()
                await self._reading_engine.dispose()

    @asynccontextmanager
    async def transaction(self, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        """A session whose work is committed at the end of the block, or undone when the block raises."""
        async with (self.reading_sessions if read_only else self.sessions)() as session:
            try:
                yield session
                await session.commit()
            except BaseException as error:
                self._availability.failed(error)
                # The error itself is raised, above all a cancellation, even if the server does not answer this.
                with suppress(Exception):
                    await session.rollback()
                raise
            self._availability.succeeded()

    def request_transaction(self) -> AbstractAsyncContextManager[AsyncSession]:
        """The transaction of the request that is being served."""
        return self.transaction(read_only=read_only_request.get())

    async def migrate(self, on_wait: Callable[[str], None] | None = None) -> None:
        """Bring the schema to the newest revision.

        One process migrates at a time. The others wait for it, without a time limit, and call `on_wait` once with
        what they wait for; by default that is logged.
        """
        async with self.migration_connection(on_wait or log.warning) as connection:
            await connection.run_sync(migrate.upgrade)

    @asynccontextmanager
    async def migration_connection(self, on_wait: Callable[[str], None]) -> AsyncIterator[AsyncConnection]:
        """A connection that holds the migration lock; the end of the block commits and releases it.

        It has no statement timeout: an index on a large table takes as long as it takes.
        """
        engine = self._migration_engine()
        has_waited = False
        try:
            while True:
                # The lock is tried, not waited for. A statement that waits is subject to `lock_timeout`, and keeps a
                # snapshot open that holds up VACUUM.
                async with _connection_with_migration_lock(engine) as connection:
                    if connection is not None:
                        yield connection
                        await connection.commit()
                        return
                if not has_waited:
                    on_wait("another process is migrating the database or has locked it: waiting for it to finish")
                    has_waited = True
                await asyncio.sleep(MIGRATION_POLL_SECONDS)
        finally:
            if engine is not self.engine:
                await engine.dispose()

    def _migration_engine(self) -> AsyncEngine:
        if _is_in_memory(self._settings):
            return self.engine
        if self._settings.uses_sqlite:
            return _create_sqlite_engine(self._settings, pool_size=1, writes=True, timeout=MIGRATION_POLL_SECONDS)
        return _create_postgres_engine(self._settings, self._waits, limits_statements=False)

    def on_commit(self, wake: Callable[[frozenset[WakeReason]], None]) -> Callable[[], None]:
        """Call `wake` after each commit that left work for the engine, with its kinds; returns what ends that."""

        def after_commit(session: Session) -> None:
            # A released savepoint fires too, but its work is not yet to be seen.
            # The mark stays: others listen as well.
            if not session.in_nested_transaction() and (work := session.info.get(_WAKE)):
                wake(work)

        event.listen(self._session_class, "after_commit", after_commit)
        return lambda: event.remove(self._session_class, "after_commit", after_commit)


def after_commit(session: AsyncSession, then: Callable[[], None]) -> None:
    """Call `then` once this transaction is committed, as for counting: what is rolled back did not happen.

    Nothing is called for sessions that are not ours.
    """
    session.info.setdefault(_THEN, []).append(then)


def _call_after_commit(session: Session) -> None:
    if not session.in_nested_transaction():
        for then in session.info.pop(_THEN, ()):
            then()


def wake_engine_after_commit(session: AsyncSession, work: WakeReason) -> None:
    """Say that this transaction leaves work of this kind for the engine."""
    session.info[_WAKE] = session.info.get(_WAKE, frozenset()) | {work}


async def begin_writing(session: AsyncSession) -> None:
    """Let a session that was opened for reading write.

    The transaction so far ends here: what was read before may have changed and has to be read again. Sessions that
    are not ours are left as they are.
    """
    engine: AsyncEngine | None = session.info.pop(_WRITING_ENGINE, None)
    if engine is not None:
        await session.rollback()
        session.sync_session.bind = engine.sync_engine


@asynccontextmanager
async def _connection_with_migration_lock(engine: AsyncEngine) -> AsyncIterator[AsyncConnection | None]:
    """A connection whose transaction holds the migration lock, or None if another process holds it."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(engine.connect())
            if engine.dialect.name == "postgresql":
                taken = bool(await connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(MIGRATION_LOCK))))
            else:
                await connection.begin()  # which takes the write lock of the file
                taken = True
        except OperationalError as error:
            if not _is_busy(error):
                raise
            taken = False
        yield connection if taken else None


def _is_busy(error: OperationalError) -> bool:
    """Whether another connection holds the lock of a SQLite file."""
    # The low byte is the primary code; SQLITE_BUSY has several extended ones.
    code: int = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY


def _create_engine(settings: Settings, waits: postgres.Waits) -> AsyncEngine:
    if settings.uses_sqlite:
        # SQLite has one writer. Transactions that write take turns at one connection, in the order in which they
        # came; several would wait for each other by trying again and again. An in-memory database is its connection.
        return _create_sqlite_engine(settings, pool_size=1, writes=True)
    return _create_postgres_engine(settings, waits)


def _create_postgres_engine(
    settings: Settings, waits: postgres.Waits, *, limits_statements: bool = True
) -> AsyncEngine:
    engine = create_async_engine(
        settings.database_url,
        echo=settings.sql_echo,
        hide_parameters=True,
        poolclass=InstrumentedPool,
        pool_logging_name=WRITING,
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=settings.database_pool_timeout_seconds,
        connect_args={
            **postgres.connect_args(settings.database_statement_timeout_seconds if limits_statements else None, waits),
            "async_creator_fn": postgres_connect.connect,
        },
    )
    postgres.watch_connections(engine)
    return engine


def _is_in_memory(settings: Settings) -> bool:
    return settings.uses_sqlite and sa.make_url(settings.database_url).database in (None, "", ":memory:")


def _create_sqlite_engine(
    settings: Settings, *, pool_size: int, writes: bool, timeout: float = SQLITE_BUSY_TIMEOUT_SECONDS
) -> AsyncEngine:
    engine = create_async_engine(
        settings.database_url,
        echo=settings.sql_echo,
        hide_parameters=True,
        poolclass=InstrumentedPool,
        pool_logging_name=WRITING if writes else READING,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=SQLITE_BUSY_TIMEOUT_SECONDS,
        connect_args={"timeout": timeout},
    )
    # A transaction that reads first and writes later would fail when another process wrote in between.
    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

    def set_up(connection: Any, record: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction: we do
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        if not writes:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    def end_transaction(connection: Any, record: object) -> None:
        # SQLAlchemy takes a COMMIT that failed for the end; to SQLite the transaction goes on, with its lock.
        if connection is not None and connection.driver_connection.in_transaction:
            connection.rollback()

    event.listen(engine.sync_engine, "connect", set_up)
    event.listen(engine.sync_engine, "checkin", end_transaction)
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


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
