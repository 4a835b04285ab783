"""Events of the audit log: pages of a user's events for the API, and of all events for an export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import ActorKind, AuditAction
from bloxserver.models.tables import AuditEventRecord
from bloxserver.models.types import UtcDateTime
from bloxserver.queries.cursors import Position, read_cursor, write_cursor

SEARCHED = 10_000
"""The number of a user's events among which one page finds those that match its filters."""

_events = AuditEventRecord.__table__.c
_PLACE = (_events.created_at, _events.id)


@dataclass(frozen=True)
class AuditFilter:
    """Which events a list contains. A filter that is empty or None is not applied.

    Equal filters have equal representations, which are part of cursors.
    """

    actions: tuple[AuditAction, ...] = ()
    actor: ActorKind | None = None
    resource_id: str | None = None
    flow_id: UUID | None = None
    since: datetime | None = None
    """The earliest time."""
    until: datetime | None = None
    """The first time that is too late."""

    def conditions(self) -> Iterator[sa.ColumnElement[bool]]:
        yield from self.period()
        yield from self.others()

    def period(self) -> Iterator[sa.ColumnElement[bool]]:
        """The conditions for which the indexes are."""
        if self.since is not None:
            yield _events.created_at >= self.since
        if self.until is not None:
            yield _events.created_at < self.until

    def others(self) -> Iterator[sa.ColumnElement[bool]]:
        if self.actions:
            yield _events.action.in_(self.actions)
        if self.actor is not None:
            yield _events.actor == self.actor
        if self.resource_id is not None:
            yield _events.resource_id == self.resource_id
        if self.flow_id is not None:
            yield _events.flow_id == self.flow_id


@dataclass(frozen=True)
class EventPage:
    items: list[dict[str, Any]]
    next_cursor: str | None


async def read_events(
    session: AsyncSession, user_id: UUID, wanted: AuditFilter, limit: int, cursor: str | None = None
) -> EventPage:
    """A page of the events of the user's account, the newest first. Raises `BadRequest` for the cursor.

    If few events match the filters, the page is short, and its cursor continues the search. So the cost of a page does
    not depend on the number of events. The names of operators are left out: they are accounts of the server's operating
    system.
    """
    name = f"audit {wanted}"
    conditions = [_events.user_id == user_id, *wanted.period()]
    if cursor is not None:
        conditions.append(sa.tuple_(*_PLACE) < _literals(read_cursor(cursor, name)))
    newest_first = [column.desc() for column in _PLACE]
    searched = None
    if others := [*wanted.others()]:
        places = sa.select(*_PLACE).where(*conditions).order_by(*newest_first)
        searched = (await session.execute(places.offset(SEARCHED - 1).limit(1))).first()
    if searched is not None:
        conditions.append(sa.tuple_(*_PLACE) >= _literals(position_of(searched)))
    events = sa.select(*_events).where(*conditions, *others).order_by(*newest_first)
    rows = (await session.execute(events.limit(limit + 1))).all()
    items = [{**row._mapping} for row in rows[:limit]]
    for item in items:
        if item["actor"] is ActorKind.OPERATOR:
            item["actor_id"] = None
    last = rows[limit - 1] if len(rows) > limit else searched
    return EventPage(items, None if last is None else write_cursor(position_of(last), name))


async def read_all_events(
    session: AsyncSession, wanted: AuditFilter, user_id: UUID | None, after: Position | None, limit: int
) -> list[sa.Row[Any]]:
    """The next events of one account or of all, the oldest first."""
    events = sa.select(*_events).where(*wanted.conditions())
    if user_id is not None:
        events = events.where(_events.user_id == user_id)
    if after is not None:
        events = events.where(sa.tuple_(*_PLACE) > _literals(after))
    return list((await session.execute(events.order_by(*_PLACE).limit(limit))).all())


def position_of(event: sa.Row[*tuple[Any, ...]]) -> Position:
    return Position(event.created_at, event.id)


def _literals(position: Position) -> sa.Tuple:
    return sa.tuple_(sa.literal(position.started_at, UtcDateTime()), sa.literal(position.id, sa.Uuid()))
