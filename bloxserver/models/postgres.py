"""Timeouts of connections to PostgreSQL.

A network that drops packets reports no error. A connection is therefore closed if the server does not acknowledge sent
data for `TCP_USER_TIMEOUT_SECONDS` (by the operating system, on Linux), or does not answer a statement within the
statement timeout and a margin.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine

APPLICATION_NAME = "bloxserver"
MIGRATION_NAME = "bloxserver-migrate"
"""The application name of sessions without a statement timeout."""
CONNECT_SECONDS = 5
LOCK_SECONDS = 5
TCP_USER_TIMEOUT_SECONDS = 10
KEEPALIVE_SECONDS = 5
"""Interval of TCP keepalive probes on an idle connection."""
KEEPALIVE_PROBES = 2
IDLE_SECONDS = 15
"""Maximum time between two statements of a transaction. Transactions wait only for the database. An idle transaction
belongs to a process that is frozen or disconnected, and its locks must be released.
"""
MARGIN_SECONDS = 2
"""Difference between the timeouts of client and server, so that the server reports the error if it can."""
CLOSE_SECONDS = 10
"""Maximum time to close all connections."""


@dataclass(frozen=True)
class Timeouts:
    """Timeouts of a connection, in seconds."""

    connect: float = CONNECT_SECONDS
    lock: float = LOCK_SECONDS
    idle: float = IDLE_SECONDS
    margin: float = MARGIN_SECONDS
    close: float = CLOSE_SECONDS


DEFAULT_TIMEOUTS = Timeouts()


def connect_args(statement_seconds: float | None, timeouts: Timeouts) -> dict[str, Any]:
    """Return the arguments for the driver. With None, statements and transactions have no timeout."""
    server_settings = {
        "application_name": APPLICATION_NAME if statement_seconds is not None else MIGRATION_NAME,
        "timezone": "UTC",
        "jit": "off",  # JIT compilation takes longer than any of our statements
        "lock_timeout": _milliseconds(timeouts.lock),
        # The server must detect dead clients too, to release their locks.
        "tcp_keepalives_idle": str(KEEPALIVE_SECONDS),
        "tcp_keepalives_interval": str(KEEPALIVE_SECONDS),
        "tcp_keepalives_count": str(KEEPALIVE_PROBES),
        "tcp_user_timeout": _milliseconds(TCP_USER_TIMEOUT_SECONDS),
    }
    if statement_seconds is None:
        return {"timeout": timeouts.connect, "server_settings": server_settings}
    server_settings["statement_timeout"] = _milliseconds(statement_seconds)
    server_settings["idle_in_transaction_session_timeout"] = _milliseconds(timeouts.idle)
    return {
        "timeout": timeouts.connect,
        "command_timeout": statement_seconds + timeouts.margin,
        "server_settings": server_settings,
    }


def driver_arguments(engine: AsyncEngine, statement_seconds: float, timeouts: Timeouts) -> dict[str, Any]:
    """Return the arguments that SQLAlchemy passes to the driver for a connection of this engine."""
    url = engine.url.difference_update_query(["prepared_statement_cache_size"])  # a parameter of SQLAlchemy
    _, url_arguments = engine.dialect.create_connect_args(url)
    return {**url_arguments, **connect_args(statement_seconds, timeouts)}


def add_connection_listeners(engine: AsyncEngine) -> None:
    """Enable keepalive on the engine's connections, and discard connections that are closed or do not respond."""
    event.listen(engine.sync_engine, "connect", _enable_keepalive)
    event.listen(engine.sync_engine, "checkout", _reject_closed)
    event.listen(engine.sync_engine, "handle_error", _terminate_unresponsive)


def _enable_keepalive(connection: Any, record: object) -> None:
    transport = getattr(connection.driver_connection, "_transport", None)
    sock: socket.socket | None = transport and transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS),
        (socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS),
        (socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        (socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_SECONDS * 1000),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _reject_closed(connection: Any, record: object, proxy: object) -> None:
    # The driver has detected a close by the server. A test query before each transaction would cost three round trips.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _terminate_unresponsive(context: ExceptionContext) -> None:
    """Terminate a connection after a client-side timeout, and invalidate the pool.

    A late response must not be read as the response to another statement. An orderly close would wait for the server,
    and the other connections of the pool probably have the same problem.
    """
    connection = context.connection
    if isinstance(context.original_exception, TimeoutError) and connection is not None and not connection.invalidated:
        driver: Any = connection.connection.driver_connection
        driver.terminate()
        context.invalidate_pool_on_disconnect = True


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
