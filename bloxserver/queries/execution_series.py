"""Statistics of a flow over time, from counters of minutes and quarter hours that the database maintains."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.errors import NotFound, Unprocessable
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.json_lines import json_lines
from bloxserver.models.single_statements import Statements
from bloxserver.models.tables import ExecutionSeriesRecord, FlowRecord
from bloxserver.models.types import UtcDateTime
from bloxserver.queries.execution_places import MINUTE_SECONDS, NORMAL, QUARTER_SECONDS, total_of
from bloxserver.queries.requesters import FLOW_ID, REQUESTER_AND_FLOW, REQUESTER_COLUMNS, Requester, read_for

MAX_BUCKETS = 1_500
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

_flows, _series = FlowRecord.__table__.c, ExecutionSeriesRecord.__table__.c
_COUNTERS = ("executions", *(status.value for status in ExecutionStatus), "input_tokens", "output_tokens")


class Interval(enum.StrEnum):
    """The width of buckets."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


_WIDTHS = {Interval.MINUTE: MINUTE, Interval.HOUR: HOUR, Interval.DAY: DAY}
DEFAULT_BUCKETS = {Interval.MINUTE: 60, Interval.HOUR: 24, Interval.DAY: 30}


@dataclass(frozen=True)
class SeriesRequest:
    """The buckets from the one that contains `begin` to the one that contains the moment before `end`.

    Hours and days are those of the local time of `zone`. Without `end`, it is now; without `begin`, there are
    `DEFAULT_BUCKETS`.
    """

    interval: Interval
    zone: ZoneInfo
    begin: datetime | None = None
    end: datetime | None = None


async def read_series(
    session: Statements, requester: Requester, flow_id: UUID, request: SeriesRequest
) -> Sequence[str]:
    """The buckets of the requester's flow as JSON, the oldest first, also those without executions.

    Raises `NotFound` for the flow, and `Unprocessable` for an interval that is empty or has too many buckets.
    """
    limits = [limit.replace(tzinfo=None).isoformat(" ", "microseconds") for limit in limits_of(request)]
    buckets = [{"start": start, "end": end} for start, end in pairwise(limits)]
    statement = _statement(session.get_bind().dialect.name)
    parameters = {
        "flow_id": flow_id,
        "seconds": MINUTE_SECONDS if request.interval is Interval.MINUTE else QUARTER_SECONDS,
        "buckets": json.dumps(buckets),
    }
    (row,) = await read_for(requester, session, statement, parameters)
    if row.flow_id is None:
        raise NotFound("Flow")
    lines: list[str] = row.lines.split("\n")
    return lines


@lru_cache
def _statement(dialect: str) -> sa.Select[Any]:
    buckets = _buckets(dialect)
    durations = sa.func.nullif(sa.func.sum(_series.durations), 0)
    mean = sa.cast(sa.func.sum(_series.duration_ms), sa.Double) / durations
    counters: list[sa.Label[Any]] = [total_of(_series[name]).label(name) for name in _COUNTERS]
    counters.append(sa.func.coalesce(mean, 0).label("avg_duration_ms"))
    is_in_bucket = sa.and_(
        _series.flow_id == FLOW_ID,
        _series.mode == NORMAL,
        _series.seconds == sa.bindparam("seconds", type_=sa.Integer),
        _series.start >= buckets.c.start,
        _series.start < buckets.c.end,
    )
    if dialect == "postgresql":
        # An outer join would compare each bucket with each row.
        counted = sa.select(*counters).where(is_in_bucket).lateral()
        rows = sa.select(*buckets.c, *counted.c).select_from(buckets.join(counted, sa.true()))
    else:
        joined = buckets.outerjoin(ExecutionSeriesRecord.__table__, is_in_bucket)
        rows = sa.select(*buckets.c, *counters).select_from(joined).group_by(*buckets.c)
    ordered = rows.order_by(buckets.c.start).subquery("buckets_of_flow")
    lines = json_lines(ordered, ("start", "end", *_COUNTERS, "avg_duration_ms")).scalar_subquery()
    columns = (*REQUESTER_COLUMNS, _flows.id.label("flow_id"), lines.label("lines"))
    return sa.select(*columns).select_from(REQUESTER_AND_FLOW)


def _buckets(dialect: str) -> sa.FromClause:
    """The table of buckets from the JSON in the parameter `buckets`."""
    buckets = sa.bindparam("buckets", type_=sa.Text)
    if dialect == "postgresql":
        columns = [sa.column(name, UtcDateTime()) for name in ("start", "end")]
        rows = sa.func.json_to_recordset(sa.cast(buckets, sa.JSON)).table_valued(*columns)
        return rows.render_derived(name="buckets", with_types=True)
    values = sa.func.json_each(buckets).table_valued("value").c.value
    members = (sa.func.json_extract(values, f"$.{name}").label(name) for name in ("start", "end"))
    return sa.select(*(sa.type_coerce(member, UtcDateTime()).label(member.name) for member in members)).subquery()


def limits_of(request: SeriesRequest) -> list[datetime]:
    """The limits of the requested buckets, each of which is the end of one and the start of the next one."""
    end = request.end or now()
    width, count = _WIDTHS[request.interval], DEFAULT_BUCKETS[request.interval]
    if request.begin is not None and request.begin >= end:
        raise Unprocessable({"query.to": "Must be later than from"})
    try:
        begin = request.begin or end - (count + 1) * width
        limits = list(islice(_limits_until(end, request, begin), MAX_BUCKETS + 2))
    except OverflowError:
        raise Unprocessable({"query.from": "Too close to the first or the last year of the calendar"}) from None
    if len(limits) > MAX_BUCKETS + 1:
        raise Unprocessable({"query.from": f"At most {MAX_BUCKETS} buckets from here to the end are possible"})
    return limits if request.begin is not None else limits[-count - 1 :]


def _limits_until(end: datetime, request: SeriesRequest, begin: datetime) -> Iterator[datetime]:
    """The limits from the start of the bucket that contains `begin` until the first one not before `end`."""
    limit = _start_of_bucket(request, begin)
    yield limit
    while limit < end:
        limit = _next_limit(request, limit)
        yield limit


def _start_of_bucket(request: SeriesRequest, moment: datetime) -> datetime:
    if request.interval is Interval.MINUTE:
        return moment.replace(second=0, microsecond=0)
    if request.interval is Interval.DAY:
        return _midnight(moment.astimezone(request.zone).date(), request.zone)
    # Twice, because a change of the clock by half an hour may lie between the moment and the result.
    for _ in range(2):
        moment -= _since_full_hour(moment.astimezone(request.zone))
    return moment


def _next_limit(request: SeriesRequest, limit: datetime) -> datetime:
    """The next full minute, full hour of the local clock, or local midnight."""
    if request.interval is Interval.MINUTE:
        return limit + MINUTE
    if request.interval is Interval.HOUR:
        later = limit + HOUR
        return later + -_since_full_hour(later.astimezone(request.zone)) % HOUR
    return _midnight(limit.astimezone(request.zone).date() + DAY, request.zone)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    """The beginning of a day. If the clock omits midnight, it is the moment of the change."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _since_full_hour(local: datetime) -> timedelta:
    return timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
