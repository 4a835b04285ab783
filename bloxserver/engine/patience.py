"""Transactions of the engine: they outlast a database that is away for a while."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.database import Database

log = structlog.stdlib.get_logger("bloxserver.engine")

Result = TypeVar("Result")
PASSING_SIGNS = ("locked", "connection", "disk is full", "readonly database", "disk I/O error", "unable to open")
"""What SQLite says, and drivers say without a SQLSTATE, where somebody can help."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0


def is_passing(error: BaseException) -> bool:
    """Whether the database may well answer next time: it is away, overloaded, or a transaction lost a race."""
    if isinstance(error, OSError | PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = str(getattr(error.orig, "sqlstate", None) or "")
    text = str(error.orig)
    return (
        error.connection_invalidated
        or state[:2] in ("08", "40", "53", "57")
        or state in ("25006", "25P03", "55P03")
        or (not state and any(sign in text for sign in PASSING_SIGNS))
    )


async def in_transaction(
    database: Database, work: Callable[[AsyncSession], Awaitable[Result]], *, read_only: bool = False
) -> Result:
    """`work` in one transaction, begun anew for as long as the database fails to answer.

    A commit whose answer was lost may have happened: `work` must come to the same when it is done twice.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            async with database.transaction(read_only=read_only) as session:
                return await work(session)
        except Exception as error:
            if not is_passing(error):
                raise
            log.warning("database does not answer, trying again", error=type(error).__name__, pause_seconds=pause)
        await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
