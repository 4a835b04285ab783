"""Connections to PostgreSQL that give up in time where the network swallows what is sent.

Neither side is told of that. A connection is dropped when the other side has not so much as confirmed what it got
(`TCP_USER_TIMEOUT_SECONDS`, by the system, on Linux), or has not answered a statement for longer than one may take.
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
PROBE_SECONDS = 5
"""How often a connection on which nothing is sent is probed."""
PROBES = 2
IDLE_SECONDS = 15
"""How long a transaction may wait for its next statement. None of ours waits for anything but the database: one that
does belongs to a process that is frozen, or cut off, and would keep its locks.
"""
MARGIN_SECONDS = 2
"""How much longer than the server we wait for the end of a statement: the server's own error is the better one."""
CLOSE_SECONDS = 10
"""How long closing all connections may take."""


@dataclass(frozen=True)
class Waits:
    """How long a connection waits, in seconds."""

    lock: float = LOCK_SECONDS
    idle: float = IDLE_SECONDS
    margin: float = MARGIN_SECONDS
    close: float = CLOSE_SECONDS


DEFAULT_WAITS = Waits()


def connect_args(statement_seconds: float | None, waits: Waits) -> dict[str, Any]:
    """The arguments for the driver. Without `statement_seconds`, statements and transactions have no time limit."""
    server_settings = {
        "application_name": APPLICATION_NAME if statement_seconds is not None else MIGRATION_NAME,
        "timezone": "UTC",
        "jit": "off",  # compiling a statement takes longer than any of ours
        "lock_timeout": _milliseconds(waits.lock),
        # that the server, too, finds out about clients that are gone, and releases their locks
        "tcp_keepalives_idle": str(PROBE_SECONDS),
        "tcp_keepalives_interval": str(PROBE_SECONDS),
        "tcp_keepalives_count": str(PROBES),
        "tcp_user_timeout": _milliseconds(TCP_USER_TIMEOUT_SECONDS),
    }
    if statement_seconds is None:
        return {"timeout": CONNECT_SECONDS, "server_settings": server_settings}
    server_settings["statement_timeout"] = _milliseconds(statement_seconds)
    server_settings["idle_in_transaction_session_timeout"] = _milliseconds(waits.idle)
    return {
        "timeout": CONNECT_SECONDS,
        "command_timeout": statement_seconds + waits.margin,
        "server_settings": server_settings,
    }


def driver_arguments(engine: AsyncEngine, statement_seconds: float, waits: Waits) -> dict[str, Any]:
    """The arguments that SQLAlchemy passes to the driver for a connection of this engine."""
    url = engine.url.difference_update_query(["prepared_statement_cache_size"])  # that one is SQLAlchemy's own
    _, of_url = engine.dialect.create_connect_args(url)
    return {**of_url, **connect_args(statement_seconds, waits)}


def watch_connections(engine: AsyncEngine) -> None:
    """Probe its connections, and let nobody have one that is of no use any more."""
    event.listen(engine.sync_engine, "connect", _probe)
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "handle_error", _drop_silent)


def _probe(connection: Any, record: object) -> None:
    transport = getattr(connection.driver_connection, "_transport", None)
    of_system: socket.socket | None = transport and transport.get_extra_info("socket")
    if sys.platform != "linux" or of_system is None or of_system.family == socket.AF_UNIX:
        return
    of_system.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, PROBE_SECONDS),
        (socket.TCP_KEEPINTVL, PROBE_SECONDS),
        (socket.TCP_KEEPCNT, PROBES),
        (socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_SECONDS * 1000),
    ):
        of_system.setsockopt(socket.IPPROTO_TCP, option, value)


def _refuse_closed(connection: Any, record: object, proxy: object) -> None:
    # The driver has seen the server go. To ask the server before each transaction costs three round trips.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _drop_silent(context: ExceptionContext) -> None:
    """SQLAlchemy drops the connection: an answer that still comes must not be taken for that to another statement.

    It need not say farewell to a server that does not answer. The others of the pool go the same way as this one.
    """
    connection = context.connection
    if isinstance(context.original_exception, TimeoutError) and connection is not None and not connection.invalidated:
        driver: Any = connection.connection.driver_connection
        driver.terminate()
        context.invalidate_pool_on_disconnect = True


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
