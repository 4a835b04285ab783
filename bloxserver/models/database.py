"""The database: engine, sessions and transactions.

A request is one transaction, and so is a step of the engine. Only `get_db`, `Database.transaction` and `Database.lean`
commit.
"""

from __future__ import annotations

import asyncio
import enum
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from bloxserver.models import migrate, postgres, sqlite_connection
from bloxserver.models.availability import Availability
from bloxserver.models.base import Base
from bloxserver.models.connection_pool import ConnectionPool
from bloxserver.models.execution_changes import CHANGES
from bloxserver.models.lean_transactions import LeanTransactions
from bloxserver.models.single_statements import SingleStatements
from bloxserver.settings import Settings, get_settings

log = structlog.stdlib.get_logger("bloxserver.database")

__all__ = ["Base", "Database", "async_session_maker", "engine", "get_db", "get_db_context", "init_db"]

SQLITE_BUSY_TIMEOUT_SECONDS = 15
MIGRATION_LOCK = 0x626C6F78
"""The key of the advisory lock on PostgreSQL that a migrating process holds."""
MIGRATION_POLL_SECONDS = 0.5
"""Interval of the attempts to acquire the migration lock."""
WRITING, READING = "writing", "reading"
"""Names of connection pools. PostgreSQL has only the first one, for both purposes."""
_WRITING_ENGINE = "bloxserver_writing_engine"
_WAKE_REASONS = "bloxserver_wake_engine"
_CALLBACKS = "bloxserver_after_commit"

read_only_request: ContextVar[bool] = ContextVar("read_only_request", default=False)
"""True during a request that is expected not to write. The API sets it."""


class WakeReason(enum.StrEnum):
    """The kinds of work that a transaction leaves for the engine."""

    EXECUTION = "execution"
    """An execution is due or has ended, or a slot is free."""
    FLOW = "flow"
    """A flow is to be started or stopped, or the next firing of a schedule is to be set."""
    CANCELLATION = "cancellation"
    """An execution that a worker may be running was ended or deleted."""
    NOTIFICATION = "notification"
    """A failure notification is due."""
    DELETION = "deletion"
    """A flow or a trigger was deleted, and its rows are still to be deleted or changed."""


class Database:
    """Engines and session factories. `sessions` can write. `reading_sessions` do not wait for a writer on SQLite."""

    def __init__(self, settings: Settings, timeouts: postgres.Timeouts = postgres.DEFAULT_TIMEOUTS) -> None:
        self._settings = settings
        self._timeouts = timeouts
        self.engine = _create_engine(settings, timeouts)
        self.reading_engine = self.engine
        if not settings.uses_sqlite:
            # Shares the connections. Each statement is its own transaction, without statements that begin and end it.
            self.reading_engine = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        elif not _is_in_memory(settings):
            self.reading_engine = _create_sqlite_engine(settings, pool_size=settings.database_pool_size, writes=False)
        self.availability = Availability()
        self.statements = SingleStatements(self.reading_engine.sync_engine, self.availability)
        """Executes statements that read. For a request that executes one statement, it is faster than a session."""
        self._session_class = type("DatabaseSession", (Session,), {})
        event.listen(self._session_class, "after_commit", _run_callbacks)
        event.listen(self._session_class, "after_rollback", lambda session: session.info.pop(_CALLBACKS, None))
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False, sync_session_class=self._session_class)
        self.reading_sessions = async_sessionmaker(
            self.reading_engine,
            expire_on_commit=False,
            sync_session_class=self._session_class,
            info={_WRITING_ENGINE: self.engine},
        )
        autocommit = self.engine
        if not settings.uses_sqlite:
            autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.single_statement_sessions = async_sessionmaker(
            autocommit, expire_on_commit=False, sync_session_class=self._session_class
        )
        self.lean = LeanTransactions(self.engine.sync_engine, autocommit.sync_engine, self.availability)

    @property
    def is_sqlite(self) -> bool:
        return self._settings.uses_sqlite

    def driver_arguments(self) -> dict[str, Any]:
        """Return the arguments of a PostgreSQL connection, for a process without SQLAlchemy."""
        return postgres.driver_arguments(self.engine, self._settings.database_statement_timeout_seconds, self._timeouts)

    def pools(self) -> Mapping[str, ConnectionPool]:
        """Return the connection pools by their names in metrics."""
        pools = (self.engine.pool, self.reading_engine.pool)
        return {str(pool.logging_name): pool for pool in pools if isinstance(pool, ConnectionPool)}

    async def dispose(self) -> None:
        """Close all connections. Abandons connections to a server that does not respond in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.close):
                await self.engine.dispose()
                await self.reading_engine.dispose()

    def transaction(
        self, *, read_only: bool = False, single_statement: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a session that is committed at the end of the block, or rolled back if the block raises.

        With `read_only`, each statement sees what was committed before it. With `single_statement`, the block executes
        at most one statement, which PostgreSQL commits without statements that begin and end a transaction.
        """
        if read_only:
            return _Transaction(self, self.reading_sessions())
        return _Transaction(self, (self.single_statement_sessions if single_statement else self.sessions)())

    def request_transaction(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Open the transaction of the current request."""
        return self.transaction(read_only=read_only_request.get())

    async def migrate(self, on_wait: Callable[[str], None] | None = None) -> None:
        """Migrate the schema to the newest revision.

        One process migrates at a time. Others wait for it without a timeout, and call `on_wait` once with the reason,
        which is logged by default.
        """
        async with self.migration_connection(on_wait or log.warning) as connection:
            await connection.run_sync(migrate.upgrade)

    @asynccontextmanager
    async def migration_connection(self, on_wait: Callable[[str], None]) -> AsyncIterator[AsyncConnection]:
        """Open a connection that holds the migration lock. The end of the block commits and releases the lock.

        The connection has no statement timeout, because creating an index on a large table takes long.
        """
        engine = self._migration_engine()
        has_waited = False
        try:
            while True:
                # Polling instead of a blocking statement, which would be subject to `lock_timeout` and whose open
                # snapshot would delay VACUUM.
                async with _connection_with_migration_lock(engine) as connection:
                    if connection is not None:
                        yield connection
                        await connection.commit()
                        return
                if not has_waited:
                    on_wait("another process is migrating the database or has locked it; waiting for it to finish")
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
        return _create_postgres_engine(self._settings, self._timeouts, limits_statements=False)

    def on_commit(self, wake: Callable[[frozenset[WakeReason]], None]) -> Callable[[], None]:
        """Call `wake` with the reasons after each commit that creates work for the engine.

        Returns a function that removes the callback.
        """
        return self._listen(_WAKE_REASONS, wake)

    def on_execution_change(self, changed: Callable[[frozenset[str]], None]) -> Callable[[], None]:
        """As `on_commit`, for commits that change executions: call `changed` with their keys."""
        return self._listen(CHANGES, changed)

    def _listen(self, member: str, callback: Callable[[Any], None]) -> Callable[[], None]:
        def after_commit(session: Session) -> None:
            # The event also occurs when a savepoint is released, before the work is visible to others.
            # The values are kept for other listeners.
            if not session.in_nested_transaction() and (values := session.info.get(member)):
                callback(values)

        event.listen(self._session_class, "after_commit", after_commit)
        return lambda: event.remove(self._session_class, "after_commit", after_commit)


class _Transaction:
    """The block of `Database.transaction`. A class, because generators as context managers take longer."""

    def __init__(self, database: Database, session: AsyncSession) -> None:
        self._database = database
        self._session = session

    async def __aenter__(self) -> AsyncSession:
        return self._session

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        session = self._session
        if not session.in_transaction():
            session.sync_session.close()  # holds no connection
        elif error is None and _WRITING_ENGINE in session.info:
            await session.close()  # nothing was written
        else:
            await self._end(error)
        if error is None:
            self._database.availability.succeeded()
        else:
            self._database.availability.failed(error)

    async def _end(self, error: BaseException | None) -> None:
        try:
            if error is None:
                await self._session.commit()
        except BaseException as failure:
            self._database.availability.failed(failure)
            error = failure
            raise
        finally:
            # An error of the rollback must not replace the original exception, in particular a cancellation.
            with suppress(Exception) if error is not None else nullcontext():
                await self._session.close()


def after_commit(session: AsyncSession, callback: Callable[[], None]) -> None:
    """Call `callback` after the transaction is committed, for example to count; not after a rollback.

    Works only for sessions of `Database`; for others, the callback is never called.
    """
    session.info.setdefault(_CALLBACKS, []).append(callback)


def _run_callbacks(session: Session) -> None:
    if not session.in_nested_transaction():
        for callback in session.info.pop(_CALLBACKS, ()):
            callback()


def wake_engine_after_commit(session: AsyncSession, reason: WakeReason) -> None:
    """Wake the engine for this reason after the transaction is committed."""
    session.info[_WAKE_REASONS] = session.info.get(_WAKE_REASONS, frozenset()) | {reason}


async def begin_writing(session: AsyncSession) -> None:
    """Switch a session that was opened for reading to the engine that can write.

    This ends the current transaction. Rows that were read before can have changed and must be read again. Does nothing
    for sessions that are not from `Database`.
    """
    engine: AsyncEngine | None = session.info.pop(_WRITING_ENGINE, None)
    if engine is not None:
        await session.rollback()
        session.sync_session.bind = engine.sync_engine


@asynccontextmanager
async def _connection_with_migration_lock(engine: AsyncEngine) -> AsyncIterator[AsyncConnection | None]:
    """Open a connection whose transaction holds the migration lock; None if another process holds the lock."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(engine.connect())
            if engine.dialect.name == "postgresql":
                acquired = bool(await connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(MIGRATION_LOCK))))
            else:
                await connection.begin()  # acquires the write lock of the file
                acquired = True
        except OperationalError as error:
            if not _is_busy(error):
                raise
            acquired = False
        yield connection if acquired else None


def _is_busy(error: OperationalError) -> bool:
    """Whether another connection holds the lock of a SQLite file."""
    # The low byte is the primary code. SQLITE_BUSY has several extended codes.
    code: int = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY


def _create_engine(settings: Settings, timeouts: postgres.Timeouts) -> AsyncEngine:
    if settings.uses_sqlite:
        # SQLite allows one writer. With a single connection, writing transactions wait in a queue; several connections
        # would poll for the lock. An in-memory database exists only in its connection.
        return _create_sqlite_engine(settings, pool_size=1, writes=True)
    return _create_postgres_engine(settings, timeouts)


def _create_postgres_engine(
    settings: Settings, timeouts: postgres.Timeouts, *, limits_statements: bool = True
) -> AsyncEngine:
    from bloxserver.models import postgres_connect  # imports the driver, which a server with SQLite does not need

    engine = create_async_engine(
        settings.database_url,
        echo=settings.sql_echo,
        hide_parameters=True,
        poolclass=ConnectionPool,
        pool_logging_name=WRITING,
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=settings.database_pool_timeout_seconds,
        connect_args={
            **postgres.connect_args(
                settings.database_statement_timeout_seconds if limits_statements else None, timeouts
            ),
            "async_creator_fn": postgres_connect.connect,
        },
    )
    postgres.add_connection_listeners(engine)
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
        poolclass=ConnectionPool,
        pool_logging_name=WRITING if writes else READING,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=SQLITE_BUSY_TIMEOUT_SECONDS,
        connect_args={"timeout": timeout, "async_creator_fn": sqlite_connection.connect},
    )

    def set_up(connection: Any, record: object) -> None:
        connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
        cursor = connection.cursor()
        # Without recursive triggers, the deletes of REPLACE would not be counted.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        if not writes:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    def end_transaction(connection: Any, record: object) -> None:
        # After a failed COMMIT, SQLAlchemy considers the transaction ended, but SQLite keeps it open with its lock.
        if connection is not None and connection.driver_connection.in_transaction:
            connection.rollback()

    event.listen(engine.sync_engine, "connect", set_up)
    event.listen(engine.sync_engine, "checkin", end_transaction)
    if writes:
        # A transaction that reads before it writes would fail if another process wrote in between.
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


database = Database(get_settings())
engine = database.engine
async_session_maker = database.sessions


async def get_db() -> AsyncIterator[AsyncSession]:
    """Yield the session of a request. It is committed before the response is sent, or rolled back on an error."""
    async with database.request_transaction() as session:
        yield session


async def release(session: AsyncSession) -> None:
    """Commit, and return the connection to the pool, before work that does not need the database.

    Later statements use a new transaction.
    """
    await session.commit()


@asynccontextmanager
async def get_db_context() -> AsyncIterator[AsyncSession]:
    """Open a session outside of a request, committed at the end of the block."""
    async with database.transaction() as session:
        yield session


async def init_db() -> None:
    """Create the tables of the application's database, or migrate them."""
    await database.migrate()
