"""What errors of the database mean: which pass, and what to tell an operator."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

TRANSIENT_MESSAGES = ("locked", "connection", "disk is full", "readonly database", "disk I/O error", "unable to open")
"""What SQLite says, and drivers say without a SQLSTATE, where somebody can help."""
REASONS = {
    "28000": "the server does not let this user in from here",
    "28P01": "the server refuses the user name or the password",
    "3D000": "the server has no database of this name",
    "42501": "the user has no right to this",
    "42P01": "tables are missing, run `bloxserver migrate`",
    "42703": "columns are missing, run `bloxserver migrate`",
    "53300": "the server has no connection left",
    "57P03": "the server is starting or stopping",
}
"""By SQLSTATE. The server's own texts quote names and values."""


def reason_of(error: BaseException) -> str:
    """What is wrong, without addresses, names and values."""
    state = str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")
    if state in REASONS:
        return REASONS[state]
    return f"{type(error).__name__}, SQLSTATE {state}" if state else type(error).__name__


def unless_transient(error: BaseException) -> BaseException | None:
    """What a log shows the traceback of. Loops try again every second or two: while the database is away, one line
    for each is enough.
    """
    return None if is_transient(error) else error


def is_transient(error: BaseException) -> bool:
    """Whether the database may well answer next time: it is away, overloaded, or a transaction lost a race."""
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, OSError | PoolTimeoutError):
        return True
    if isinstance(error, SQLAlchemyError) and isinstance(error.__cause__, OSError):
        return True
    state = str(getattr(original, "sqlstate", None) or "")
    if state[:2] in ("08", "40", "53", "57") or state in ("25006", "25P03", "55P03"):
        return True
    if not isinstance(error, DBAPIError):
        return False
    # The words only where there is no code: the text of another error may quote what a user sent.
    return error.connection_invalidated or (not state and any(sign in str(original) for sign in TRANSIENT_MESSAGES))
