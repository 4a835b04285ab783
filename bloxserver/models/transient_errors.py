"""Classifies database errors, and describes them without confidential data."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

TRANSIENT_MESSAGES = ("locked", "connection", "disk is full", "readonly database", "disk I/O error", "unable to open")
"""Parts of messages of transient errors without an SQLSTATE: those of SQLite and of drivers."""
CONNECTION_MESSAGES = ("connection", "unable to open")
REASONS = {
    "28000": "the server does not accept connections of this user from this address",
    "28P01": "the server rejected the user name or the password",
    "3D000": "the server has no database of this name",
    "42501": "the user lacks a privilege",
    "42P01": "tables are missing, run `bloxserver migrate`",
    "42703": "columns are missing, run `bloxserver migrate`",
    "53300": "the server has no free connections",
    "57P03": "the server is starting or stopping",
}
"""Descriptions by SQLSTATE. The messages of the server contain names and values."""


def describe_error(error: BaseException) -> str:
    """Describe the error without addresses, names and values."""
    state = _sqlstate(error)
    if state in REASONS:
        return REASONS[state]
    return f"{type(error).__name__}, SQLSTATE {state}" if state else type(error).__name__


def is_transient(error: BaseException) -> bool:
    """Whether a retry may succeed: the database is unavailable or overloaded, or a transaction lost a race."""
    if isinstance(_original(error), PoolTimeoutError) or is_connection_error(error):
        return True
    state = _sqlstate(error)
    if state[:2] in ("08", "40", "53", "57") or state in ("25006", "25P03", "55P03"):
        return True
    return _has_message(error, TRANSIENT_MESSAGES)


def is_connection_error(error: BaseException) -> bool:
    """Whether the database cannot be reached: the connection failed, broke, or was refused."""
    if isinstance(_original(error), OSError):
        return True
    if isinstance(error, SQLAlchemyError) and isinstance(error.__cause__, OSError):
        return True
    state = _sqlstate(error)
    if state[:2] == "08" or state in ("53300", "57P01", "57P02", "57P03"):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return _has_message(error, CONNECTION_MESSAGES)


def _original(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _sqlstate(error: BaseException) -> str:
    return str(getattr(_original(error), "sqlstate", None) or "")


def _has_message(error: BaseException, parts: tuple[str, ...]) -> bool:
    # Only without an SQLSTATE: other messages can contain user input.
    if not isinstance(error, DBAPIError) or _sqlstate(error):
        return False
    return any(part in str(error.orig) for part in parts)
