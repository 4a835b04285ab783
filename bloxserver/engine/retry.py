"""Transactions that are retried while the database is unavailable or a row is locked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.backoff import backoff_seconds
from bloxserver.models.database import Database
from bloxserver.models.transient_errors import describe_error, is_connection_error, is_transient

log = structlog.stdlib.get_logger("bloxserver.engine")

Item = TypeVar("Item")
Result = TypeVar("Result")
INITIAL_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 2.5
MAX_CONSECUTIVE_FAILURES = 3
"""After this many consecutive failures, the cause is assumed to be the database and not a locked row."""


async def retry_transaction(
    database: Database, work: Callable[[AsyncSession], Awaitable[Result]], *, read_only: bool = False
) -> Result:
    """Run `work` in a transaction; retry with backoff after transient errors, without a limit.

    `work` must be idempotent, because a commit whose answer was lost may have taken effect. Raises every error that
    is not transient.
    """
    attempt = 0
    while True:
        try:
            async with database.transaction(read_only=read_only) as session:
                return await work(session)
        except Exception as error:
            if not is_transient(error):
                raise
            attempt += 1
            if not is_connection_error(error):
                log.info("transaction retried", reason=describe_error(error), attempt=attempt)
        await asyncio.sleep(
            backoff_seconds(attempt, initial=INITIAL_BACKOFF_SECONDS, maximum=MAX_BACKOFF_SECONDS, jitter=1.0)
        )


async def process_each(items: Iterable[Item], work: Callable[[Item], Awaitable[bool]]) -> int:
    """Call `work` for each item, in separate transactions. Returns the number of calls that returned true.

    An item that fails with a transient error, such as a locked row, is skipped until the next call and does not block
    the others. Raises every other error, and the third consecutive transient error.
    """
    done = failures = 0
    for item in items:
        try:
            done += await work(item)
        except Exception as error:
            failures += 1
            if not is_transient(error) or failures == MAX_CONSECUTIVE_FAILURES:
                raise
            log.info("item skipped until the next poll", reason=describe_error(error))
        else:
            failures = 0
    return done
