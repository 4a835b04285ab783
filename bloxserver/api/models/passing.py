"""Which errors of the database pass."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

PASSING_SIGNS = ("locked", "connection", "disk is full", "readonly database", "disk I/O error", "unable to open")
"""What SQLite says, and drivers say without a SQLSTATE, where somebody can help."""


def is_passing(error: BaseException) -> bool:
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
    return error.connection_invalidated or (not state and any(sign in str(original) for sign in PASSING_SIGNS))
