"""Finds the place of a row in the list of a flow's executions by counters instead of by the rows before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import expression

from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionSeriesRecord
from bloxserver.models.types import UtcDateTime
from bloxserver.queries.requesters import FLOW_ID

NORMAL = "normal"
"""The mode of the executions in lists, statistics and series."""
QUARTER_SECONDS, MINUTE_SECONDS = 900, 60

_series = ExecutionSeriesRecord.__table__.c


class Place(NamedTuple):
    """Where the row with an offset is: the row with `offset` among the rows that are not newer than `until`."""

    until: sa.ColumnElement[Any]
    """The last moment of a minute; null if the list has fewer rows."""
    offset: sa.ColumnElement[int]


class last_moment(expression.FunctionElement[Any]):  # noqa: N801
    """The last microsecond of a bucket: its start, and its width in seconds. Its end may be in the year 10,000."""

    type = UtcDateTime()
    inherit_cache = True


def counter(columns: Any, statuses: Sequence[ExecutionStatus]) -> sa.ColumnElement[int]:
    """The counter of the executions with these statuses, or of all, in a table of counters."""
    counted: list[sa.ColumnElement[int]] = [columns[status.value] for status in statuses] or [columns.executions]
    return sum(counted[1:], counted[0])


def total_of(counted: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """The sum of a counter. PostgreSQL would return a decimal number."""
    return sa.cast(sa.func.coalesce(sa.func.sum(counted), 0), sa.BigInteger)


def place_of(offset: sa.ColumnElement[int], statuses: Sequence[ExecutionStatus]) -> Place:
    """The place of the row with this offset in the list of the flow `flow_id`.

    The quarter hour is found first, so that a statement reads the minutes of one quarter hour only.
    """
    quarter = _bucket(offset, statuses, QUARTER_SECONDS).cte("quarter")
    start, before = (sa.select(column).scalar_subquery() for column in quarter.c)
    end = sa.select(last_moment(quarter.c.start, QUARTER_SECONDS)).scalar_subquery()
    within = _series.start >= start, _series.start <= end
    minute = _bucket(offset - before, statuses, MINUTE_SECONDS, *within).cte("minute")
    until = sa.select(last_moment(minute.c.start, MINUTE_SECONDS)).scalar_subquery()
    newer = sa.select(minute.c.newer).scalar_subquery()
    return Place(until, sa.func.coalesce(offset - before - newer, 0))


def _bucket(
    offset: sa.ColumnElement[int],
    statuses: Sequence[ExecutionStatus],
    seconds: int,
    *conditions: sa.ColumnElement[bool],
) -> sa.Select[Any]:
    """The start of the bucket that contains the row with this offset, and the number of rows in newer buckets."""
    buckets = (
        sa.select(_series.start, total_of(counter(_series, statuses)).label("rows"))
        .where(
            _series.flow_id == FLOW_ID,
            _series.mode == NORMAL,
            _series.seconds == seconds,
            *conditions,
        )
        .group_by(_series.start)
        .subquery()
    )
    cumulated = sa.cast(sa.func.sum(buckets.c.rows).over(order_by=buckets.c.start.desc()), sa.BigInteger)
    counted = sa.select(buckets.c.start, buckets.c.rows, cumulated.label("until")).subquery()
    return (
        sa.select(counted.c.start, (counted.c.until - counted.c.rows).label("newer"))
        .where(counted.c.until > offset)
        .order_by(counted.c.start.desc())
        .limit(1)
    )


@compiles(last_moment, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    start, seconds = _arguments(element, compiler, **options)
    return f"{start} + interval '{seconds} s' - interval '1 us'"


@compiles(last_moment, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    start, seconds = _arguments(element, compiler, **options)
    return f"strftime('%Y-%m-%d %H:%M', {start}, '{seconds // 60 - 1} minutes') || ':59.999999'"


def _arguments(element: Any, compiler: Any, **options: Any) -> tuple[str, int]:
    start, seconds = element.clauses
    return compiler.process(start, **options), seconds.value
