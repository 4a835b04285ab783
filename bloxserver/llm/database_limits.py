"""Limits of calls of language models, counted in the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.llm import limit_statements as statements
from bloxserver.llm.limits import Reservation, Settlement, Used
from bloxserver.models.database import Database
from bloxserver.plans import Plan

NOTHING = Used(0, 0, 0)
CLEANUP = timedelta(minutes=1)
"""How often a process ends the expired reservations of all users."""


class DatabaseLimits:
    """One row for each user, which one statement checks and changes."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock
        self._next_cleanup = clock()

    async def reserve(self, reservation: Reservation, plan: Plan) -> tuple[bool, Used]:
        is_possible = (
            min(plan.llm_requests_per_minute, plan.llm_concurrent) >= 1
            and reservation.tokens <= plan.llm_tokens_per_minute
        )
        values = statements.parameters_of(reservation, plan)
        if is_possible:
            counting = partial(_count, values=values)
            used = await self._database.lean.run(counting, single_statement=not self._database.is_sqlite)
            if used is not None:
                return True, used

        def count_again(connection: sa.Connection) -> tuple[bool, Used]:
            _end(connection, _expired(connection, self._clock(), reservation.user_id))
            if is_possible and (used := _count(connection, values)) is not None:
                return True, used
            row = connection.execute(statements.read(), values).first()
            return False, NOTHING if row is None else Used(*row)

        return await self._database.lean.run(count_again)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        moment = self._clock()

        def write(connection: sa.Connection) -> None:
            _end(connection, _delete(connection, settlements))
            if moment >= self._next_cleanup:
                _end(connection, _expired(connection, moment))

        await self._database.lean.run(write)
        self._next_cleanup = max(self._next_cleanup, moment + CLEANUP)

    async def aclose(self) -> None:
        """Nothing is to be closed: the database belongs to others."""


def _count(connection: sa.Connection, values: Mapping[str, Any]) -> Used | None:
    """Count a reservation and insert it, with one statement on PostgreSQL. Returns None if a limit is reached."""
    if connection.dialect.name == "postgresql":
        row = connection.execute(statements.count_and_insert(), values).first()
    else:
        row = connection.execute(statements.count(connection.dialect.name), values).first()
        if row is not None:
            connection.execute(statements.insert(), values)
    return None if row is None else Used(*row)


Ended = Sequence[tuple[UUID, int, int]]
"""Ended reservations: user, minute, and what is to be added to the tokens of that minute."""


def _delete(connection: sa.Connection, settlements: Sequence[Settlement]) -> Ended:
    """Delete the reservations of the settlements."""
    used = {settlement.reservation.id: settlement.tokens for settlement in settlements}
    rows = connection.execute(statements.delete_ended(connection.dialect.name), {"ids": list(used)})
    return [(row.user_id, row.minute, used[row.id] - row.tokens) for row in rows]


def _expired(connection: sa.Connection, moment: datetime, user_id: UUID | None = None) -> Ended:
    """Delete expired reservations, of one user or of all. Their tokens stay counted: the calls may have been made."""
    statement = statements.delete_expired(of_one_user=user_id is not None)
    rows = connection.execute(statement, {"moment": moment, "user": user_id} if user_id else {"moment": moment})
    return [(row.user_id, row.minute, 0) for row in rows]


def _end(connection: sa.Connection, ended: Ended) -> None:
    """Take ended reservations from the counts of their users."""
    sums: dict[tuple[UUID, int], list[int]] = defaultdict(lambda: [0, 0])
    for user_id, minute, tokens in ended:
        total = sums[user_id, minute]
        total[0] += 1
        total[1] += tokens
    # In the same order in all processes, so that their transactions do not deadlock.
    rows = [
        {"ended_user": user_id, "ended_minute": minute, "ended_number": number, "ended_tokens": tokens}
        for (user_id, minute), (number, tokens) in sorted(sums.items(), key=lambda item: (item[0][0].bytes, item[0][1]))
    ]
    if rows:
        connection.execute(statements.end(), rows)
