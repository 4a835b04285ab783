"""Transactions without a session, for the few that each call of a language model waits for.

A session takes longer to open, use and close than these transactions take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.util import greenlet_spawn

from bloxserver.models.availability import Availability

Result = TypeVar("Result")


class LeanTransactions:
    """Runs functions with a connection, each in one transaction."""

    def __init__(self, engine: sa.Engine, autocommit_engine: sa.Engine, availability: Availability) -> None:
        """The transactions of `autocommit_engine` have one statement."""
        self._engine = engine
        self._autocommit_engine = autocommit_engine
        self._availability = availability

    async def run(self, work: Callable[[sa.Connection], Result], *, single_statement: bool = False) -> Result:
        """Call `work`, commit, and return its result. Nothing is committed if it raises.

        With `single_statement`, `work` executes at most one statement, which PostgreSQL commits without statements that
        begin and end a transaction.
        """
        engine = self._autocommit_engine if single_statement else self._engine
        try:
            result: Result = await greenlet_spawn(_run, engine, work)
        except BaseException as error:
            self._availability.failed(error)
            raise
        self._availability.succeeded()
        return result


def _run(engine: sa.Engine, work: Callable[[sa.Connection], Result]) -> Result:
    with engine.begin() as connection:
        return work(connection)
