"""Transactions of the engine: they outlast a database that is away for a while, and rows that somebody holds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.database import Database
from bloxserver.models.transient_errors import is_transient

log = structlog.stdlib.get_logger("bloxserver.engine")

Item = TypeVar("Item")
Result = TypeVar("Result")
INITIAL_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0
MAX_CONSECUTIVE_FAILURES = 3
"""In a row: then it is no single row, but the database that fails to answer."""


async def retry_transaction(
    database: Database, work: Callable[[AsyncSession], Awaitable[Result]], *, read_only: bool = False
) -> Result:
    """`work` in one transaction, begun anew for as long as the database fails to answer.

    A commit whose answer was lost may have happened: `work` must come to the same when it is done twice.
    """
    pause = INITIAL_BACKOFF_SECONDS
    while True:
        try:
            async with database.transaction(read_only=read_only) as session:
                return await work(session)
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("database does not answer, trying again", error=type(error).__name__, pause_seconds=pause)
        await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
        pause = min(pause * 2, MAX_BACKOFF_SECONDS)


async def process_each(items: Iterable[Item], work: Callable[[Item], Awaitable[bool]]) -> int:
    """`work` for each, in transactions of its own; for how many it did something.

    One that fails for a passing reason, as a row that somebody holds, is left for the next time, and keeps no other
    waiting. Raises what else it fails with, and the third passing failure in a row.
    """
    done = failures = 0
    for item in items:
        try:
            done += await work(item)
        except Exception as error:
            failures += 1
            if not is_transient(error) or failures == MAX_CONSECUTIVE_FAILURES:
                raise
            log.warning("left for the next time", error=type(error).__name__)
        else:
            failures = 0
    return done
