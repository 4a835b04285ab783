"""Limits of calls of language models, counted in the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.llm.limits import Reservation, Settlement, Used
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmReservationRecord, LlmWindowRecord
from bloxserver.models.upsert import insert_into
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
        async with self._database.transaction(single_statement=not self._database.is_sqlite) as session:
            used = await _count(session, reservation, plan)
        if used is not None:
            return True, used
        async with self._database.transaction() as session:
            await _end(session, await _expired(session, self._clock(), reservation.user_id))
            if (used := await _count(session, reservation, plan)) is not None:
                return True, used
            return False, await _read(session, reservation)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        moment = self._clock()
        async with self._database.transaction() as session:
            await _end(session, await _delete(session, settlements))
            if moment >= self._next_cleanup:
                await _end(session, await _expired(session, moment))
        self._next_cleanup = max(self._next_cleanup, moment + CLEANUP)

    async def aclose(self) -> None:
        """Nothing is to be closed: the database belongs to others."""


async def _count(session: AsyncSession, reservation: Reservation, plan: Plan) -> Used | None:
    """Count a reservation and insert it, with one statement on PostgreSQL. Returns None if a limit is reached."""
    window = LlmWindowRecord
    if min(plan.llm_requests_per_minute, plan.llm_concurrent) < 1 or reservation.tokens > plan.llm_tokens_per_minute:
        return None
    is_current = window.minute >= reservation.minute
    requests = sa.case((is_current, window.requests), else_=0)
    tokens = sa.case((is_current, window.tokens), else_=0)
    counted = (
        insert_into(session, window)
        .values(user_id=reservation.user_id, minute=reservation.minute, requests=1, tokens=reservation.tokens, active=1)
        .on_conflict_do_update(
            index_elements=[window.user_id],
            set_={
                "minute": sa.case((is_current, window.minute), else_=reservation.minute),
                "requests": requests + 1,
                "tokens": tokens + reservation.tokens,
                "active": window.active + 1,
            },
            where=sa.and_(
                requests < plan.llm_requests_per_minute,
                tokens + reservation.tokens <= plan.llm_tokens_per_minute,
                window.active < plan.llm_concurrent,
            ),
        )
        .returning(window.requests, window.tokens, window.active)
    )
    values = {
        "id": reservation.id,
        "user_id": reservation.user_id,
        "minute": reservation.minute,
        "tokens": reservation.tokens,
        "expires_at": reservation.expires_at,
    }
    if session.get_bind().dialect.name == "sqlite":
        row = (await session.execute(counted)).first()
        if row is not None:
            await session.execute(sa.insert(LlmReservationRecord).values(values))
        return None if row is None else Used(*row)
    # A statement of its own would need another round trip.
    cte = counted.cte("counted")
    columns = LlmReservationRecord.__table__.c
    literals = [sa.literal(value, columns[name].type) for name, value in values.items()]
    inserted = (
        sa.insert(LlmReservationRecord)
        .from_select(list(values), sa.select(*literals).select_from(cte))
        .returning(*(sa.select(column).scalar_subquery() for column in cte.c))
    )
    found = (await session.execute(inserted)).first()
    return None if found is None else Used(*found)


async def _read(session: AsyncSession, reservation: Reservation) -> Used:
    window = LlmWindowRecord
    is_current = window.minute >= reservation.minute
    columns = [sa.case((is_current, column), else_=0) for column in (window.requests, window.tokens)]
    row = (
        await session.execute(sa.select(*columns, window.active).where(window.user_id == reservation.user_id))
    ).first()
    return NOTHING if row is None else Used(*tuple(row))


Ended = Sequence[tuple[UUID, int, int]]
"""Ended reservations: user, minute, and what is to be added to the tokens of that minute."""


async def _delete(session: AsyncSession, settlements: Sequence[Settlement]) -> Ended:
    """Delete the reservations of the settlements, in the same order in all processes."""
    used = {settlement.reservation.id: settlement.tokens for settlement in settlements}
    record = LlmReservationRecord
    rows = await session.execute(
        sa.delete(record)
        .where(record.id.in_(used))
        .returning(record.id, record.user_id, record.minute, record.tokens)
        .execution_options(synchronize_session=False)
    )
    return [(row.user_id, row.minute, used[row.id] - row.tokens) for row in rows]


async def _expired(session: AsyncSession, moment: datetime, user_id: UUID | None = None) -> Ended:
    """Delete expired reservations, of one user or of all. Their tokens stay counted: the calls may have been made."""
    record = LlmReservationRecord
    conditions = [record.expires_at <= moment, *([] if user_id is None else [record.user_id == user_id])]
    rows = await session.execute(
        sa.delete(record)
        .where(*conditions)
        .returning(record.user_id, record.minute)
        .execution_options(synchronize_session=False)
    )
    return [(row.user_id, row.minute, 0) for row in rows]


async def _end(session: AsyncSession, ended: Ended) -> None:
    """Take ended reservations from the counts of their users."""
    sums: dict[tuple[UUID, int], list[int]] = defaultdict(lambda: [0, 0])
    for user_id, minute, tokens in ended:
        total = sums[user_id, minute]
        total[0] += 1
        total[1] += tokens
    window = LlmWindowRecord
    # In the same order in all processes, so that their transactions do not deadlock.
    for (user_id, minute), (number, tokens) in sorted(sums.items(), key=lambda item: (item[0][0].bytes, item[0][1])):
        values: dict[str, Any] = {
            "active": sa.case((window.active > number, window.active - number), else_=0),
            "tokens": sa.case((window.minute == minute, window.tokens + tokens), else_=window.tokens),
        }
        await session.execute(
            sa.update(window)
            .where(window.user_id == user_id)
            .values(values)
            .execution_options(synchronize_session=False)
        )
