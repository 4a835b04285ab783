"""What each flow of a user used in a time, from counters of executions that the database maintains."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import Unprocessable
from bloxserver.models.tables import ExecutionSeriesRecord, FlowRecord
from bloxserver.queries.cursors import read_number_cursor, write_number_cursor
from bloxserver.queries.execution_places import MINUTE_SECONDS, NORMAL, QUARTER_SECONDS, total_of
from bloxserver.queries.requesters import owned_by

QUARTER = timedelta(seconds=QUARTER_SECONDS)

_flows, _series = FlowRecord.__table__, ExecutionSeriesRecord.__table__
_COUNTERS = ("executions", "input_tokens", "output_tokens")


@dataclass(frozen=True)
class FlowUsagePage:
    """Flows with runs from `period_start` until before `period_end`, and the cursor of the next page."""

    period_start: datetime
    period_end: datetime
    items: list[dict[str, Any]]
    next_cursor: str | None


async def read_flow_usage(
    session: AsyncSession,
    user_id: UUID,
    begin: datetime,
    end: datetime,
    limit: int,
    cursor: str | None = None,
    flow_ids: Collection[UUID] | None = None,
) -> FlowUsagePage:
    """A page of the user's flows that ran, or of those with these ids: those with most runs first, in one statement.

    Both times are rounded down to the minute. Raises `Unprocessable` if none is left between them, and `BadRequest` for
    the cursor.
    """
    begin, end = (moment.replace(second=0, microsecond=0) for moment in (begin, end))
    if begin >= end:
        raise Unprocessable({"query.to": "Must be a later minute than from"})
    name = f"usage {begin} {end}"
    counted = sa.union_all(*_counted(user_id, begin, end, flow_ids)).subquery()
    usage = (
        sa.select(counted.c.flow_id, *(total_of(counted.c[name]).label(name) for name in _COUNTERS))
        .group_by(counted.c.flow_id)
        .subquery()
    )
    place = usage.c.executions, usage.c.flow_id
    wanted = (
        sa.select(*usage.c, _flows.c.name)
        .join(_flows, _flows.c.id == usage.c.flow_id)
        .where(usage.c.executions > 0)
        .order_by(*(column.desc() for column in place))
        .limit(limit + 1)
    )
    if cursor is not None:
        runs, flow_id = read_number_cursor(cursor, name)
        after = sa.tuple_(sa.literal(runs, sa.BigInteger()), sa.literal(flow_id, _flows.c.id.type))
        wanted = wanted.where(sa.tuple_(*place) < after)
    rows = (await session.execute(wanted)).all()
    items = [
        {
            "flow_id": row.flow_id,
            "flow_name": row.name,
            "runs": row.executions,
            "input_tokens": row.input_tokens,
            "output_tokens": row.output_tokens,
        }
        for row in rows[:limit]
    ]
    last = rows[limit - 1] if len(rows) > limit else None
    following = None if last is None else write_number_cursor(last.executions, last.flow_id, name)
    return FlowUsagePage(begin, end, items, following)


def _counted(
    user_id: UUID, begin: datetime, end: datetime, flow_ids: Collection[UUID] | None
) -> Iterator[sa.Select[Any]]:
    """The counters of the user's flows in this time. Each minute is in one of them."""
    owned = owned_by(user_id, _flows.c)
    if flow_ids is not None:
        owned = sa.and_(owned, _flows.c.id.in_(flow_ids))
    for seconds, start, until in _ranges(begin, end):
        yield (
            sa.select(_series.c.flow_id, *(total_of(_series.c[name]).label(name) for name in _COUNTERS))
            .join(_flows, _flows.c.id == _series.c.flow_id)
            .where(owned, _series.c.mode == NORMAL, _series.c.seconds == seconds)
            .where(_series.c.start >= start, _series.c.start < until)
            .group_by(_series.c.flow_id)
        )


def _ranges(begin: datetime, end: datetime) -> Iterator[tuple[int, datetime, datetime]]:
    """The widths of buckets, and the times of which they are read: quarter hours, and minutes before and after them."""
    first, last = _quarter(begin), _quarter(end)
    if first == last:
        yield MINUTE_SECONDS, begin, end
        return
    if first < begin:
        first += QUARTER
        yield MINUTE_SECONDS, begin, first
    if first < last:
        yield QUARTER_SECONDS, first, last
    if last < end:
        yield MINUTE_SECONDS, last, end


def _quarter(moment: datetime) -> datetime:
    """The start of the quarter hour."""
    return moment.replace(minute=moment.minute // 15 * 15)
