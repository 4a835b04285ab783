"""Statements that read pages of executions, the newest first.

A statement is built once for each shape of filters and way of paging. It reads rows by sources: a source is the
executions of one flow, and of one status if the list is filtered by status. An index has the executions of a source in
the order of the list, so that a page of a rare status costs as much as another one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from bloxserver.models.json_lines import json_lines
from bloxserver.models.tables import ExecutionRecord, ExecutionTotalsRecord, FlowRecord
from bloxserver.models.types import UtcDateTime
from bloxserver.queries.execution_costs import cost_of_execution
from bloxserver.queries.execution_filters import SEARCHED, FilterShape
from bloxserver.queries.execution_places import NORMAL, counter, place_of, total_of
from bloxserver.queries.requesters import FLOW_ID, REQUESTER, REQUESTER_AND_FLOW, REQUESTER_COLUMNS, USER_ID, owned_by

MAX_COUNT = 10_000
"""Rows are counted up to this number if the database does not maintain their number."""
CACHED_STATEMENTS = 512

_executions_table, _flows_table = ExecutionRecord.__table__, FlowRecord.__table__
_executions, _flows, _totals = _executions_table.c, _flows_table.c, ExecutionTotalsRecord.__table__.c
_own = _flows_table.alias("own").c
_COLUMNS = ("id", "status", "trigger_type", "started_at", "duration_ms", "filtered")
_LISTED = (*_COLUMNS, "cost_usd")
_READ = [_executions[name] for name in (*_COLUMNS, "flow_id", "error_message", "input_tokens")]
_OFFSET = sa.bindparam("offset", type_=sa.BigInteger)
_FIRST_TIME = sa.literal(datetime(1, 1, 1, tzinfo=UTC), UtcDateTime())

Number = sa.ColumnElement[int]
Condition = Callable[[Any], sa.ColumnElement[bool]]
"""A condition for the columns of executions."""


class Paging(enum.Enum):
    """How the beginning of a page is found."""

    START = enum.auto()
    """It is the beginning of the list."""
    OFFSET = enum.auto()
    """By reading the rows before it."""
    CURSOR = enum.auto()
    """By the last row before it."""
    SERIES = enum.auto()
    """By counters of the rows before it. Only for the executions of one flow, filtered by status at most."""


@lru_cache(CACHED_STATEMENTS)
def flow_page(shape: FilterShape, paging: Paging, limit: int, dialect: str) -> sa.Select[Any]:
    """The statement for a page of one flow's executions. Its row has `flow_id`, null if the flow is not found.

    `lines` has the items of the page and the next one as JSON. `matching` is the number of executions that match the
    filters, up to `MAX_COUNT` + 1 unless it is maintained. `found` is the number that a search found.
    """
    statement = _Statement(shape, paging, limit, dialect, is_of_flow=True)
    return sa.select(*statement.columns(), _flows.id.label("flow_id")).select_from(REQUESTER_AND_FLOW)


@lru_cache(CACHED_STATEMENTS)
def user_page(shape: FilterShape, paging: Paging, limit: int, dialect: str) -> sa.Select[Any]:
    """The statement for a page of the executions of all flows of the requester. Its items also name the flow."""
    statement = _Statement(shape, paging, limit, dialect, is_of_flow=False)
    return sa.select(*statement.columns()).select_from(REQUESTER)


class _Statement:
    """The parts of a statement."""

    def __init__(self, shape: FilterShape, paging: Paging, limit: int, dialect: str, *, is_of_flow: bool) -> None:
        self.shape = shape
        self.is_of_flow = is_of_flow
        self.is_of_one_source = is_of_flow and len(shape.statuses) <= 1
        self.is_postgresql = dialect == "postgresql"
        self.limit = _constant(limit)
        self.offset: Number | None = None
        self.is_in_place: Condition = _is_anywhere
        if paging is Paging.OFFSET:
            self.offset = _OFFSET
        elif paging is Paging.CURSOR:
            self.is_in_place = _is_after_cursor
        elif paging is Paging.SERIES:
            until, self.offset = place_of(_OFFSET, shape.statuses)
            self.is_in_place = lambda columns: columns.started_at <= until
        self.listed = [*_LISTED] if is_of_flow else [*_LISTED, "flow_id", "flow_name"]

    def columns(self) -> list[sa.ColumnElement[Any]]:
        columns = [*REQUESTER_COLUMNS, self._matching().label("matching")]
        if self.shape.is_search:
            found = self._found()
            columns.append(sa.select(sa.func.count()).select_from(found).scalar_subquery().label("found"))
            rows = _newest_first(sa.select(found).where(self.is_in_place(found.c)), found.c, self.limit, self.offset)
        else:
            rows = self._rows(self.is_in_place, self.limit, self.offset)
        page = rows.subquery("page")
        priced = sa.select(page, cost_of_execution(page.c)).subquery("priced")
        lines = json_lines(priced, self.listed).scalar_subquery()
        return [*columns, lines.label("lines")]

    def _matching(self) -> sa.ScalarSelect[int]:
        if self.shape.has_maintained_total:
            total = total_of(counter(_totals, self.shape.statuses))
            return sa.select(total).where(self._is_of_flows(), _totals.mode == NORMAL).scalar_subquery()
        limit = _constant(MAX_COUNT + 1)
        if self.is_of_one_source:
            # Its order makes PostgreSQL read an index instead of the whole table, of which it expects to read little.
            matching = self._rows(_is_anywhere, limit, None)
        else:
            rows, _ = self._of_each(self._sources(), limit, _is_anywhere)
            matching = sa.select(sa.literal_column("1")).select_from(rows).limit(limit)
        return sa.select(sa.func.count()).select_from(matching.subquery()).scalar_subquery()

    def _is_of_flows(self) -> sa.ColumnElement[bool]:
        if self.is_of_flow:
            return _totals.flow_id == _flows.id
        return _totals.flow_id.in_(self._own_flows().with_only_columns(_own.id))

    def _found(self) -> sa.Subquery:
        """The executions that a search finds."""
        searched = self._rows(_is_anywhere, _constant(SEARCHED), None).subquery("searched")
        position = sa.func.strpos if self.is_postgresql else sa.func.instr
        text = sa.bindparam("error_text", type_=sa.Text)
        return sa.select(searched).where(position(searched.c.error_message, text) > 0).subquery("found")

    def _conditions(self) -> list[sa.ColumnElement[bool]]:
        return [_executions.mode == NORMAL, *self.shape.conditions()]

    def _rows(self, is_in_place: Condition, limit: Number, offset: Number | None) -> sa.Select[Any]:
        """The newest executions that match the filters, apart from a search."""
        if not self.is_of_one_source:
            return self._merged_rows(is_in_place, limit, offset)
        wanted = sa.select(*_READ).where(_executions.flow_id == _flows.id, *self._conditions())
        for status in self.shape.statuses:
            wanted = wanted.where(_executions.status == status)
        wanted = wanted.where(is_in_place(_executions)).correlate(_flows_table)
        return _newest_first(wanted, _executions, limit, offset)

    def _merged_rows(self, is_in_place: Condition, limit: Number, offset: Number | None) -> sa.Select[Any]:
        """The newest executions of several sources.

        The heads of all sources together have more rows than the page reaches to, unless some sources are short. Then
        the last of the newest heads limits the rows that are read.
        """
        sources = self._sources()
        reach = limit if offset is None else limit + offset
        share = reach * 2 // (sa.select(sa.func.count()).select_from(sources).scalar_subquery() + 1) + 1
        rows, head = self._of_each(sources, share, is_in_place)
        heads = sa.select(*sources.c, head.started_at).select_from(rows).cte()
        last = sa.select(heads.c.started_at).order_by(heads.c.started_at.desc()).limit(1).offset(reach - 1)
        oldest = sa.func.coalesce(last.scalar_subquery(), _FIRST_TIME)
        near = sa.select(*(heads.c[column.key] for column in sources.c)).where(heads.c.started_at >= oldest).distinct()
        sources = near.cte()
        rows, found = self._of_each(
            sources, reach, lambda columns: sa.and_(is_in_place(columns), columns.started_at >= oldest)
        )
        columns = [*(found[column.key] for column in _READ), sources.c.name.label("flow_name")]
        return _newest_first(sa.select(*columns).select_from(rows), found, limit, offset)

    def _sources(self) -> sa.CTE:
        flows = self._own_flows()
        if not self.shape.statuses:
            return flows.cte()
        values = (sa.literal(status, _executions.status.type) for status in self.shape.statuses)
        statuses = sa.union_all(*(sa.select(value.label("status")) for value in values)).subquery()
        own = flows.subquery()
        return sa.select(own, statuses).select_from(own.join(statuses, sa.true())).cte()

    def _own_flows(self) -> sa.Select[Any]:
        """The flows of the requester that the list is about."""
        flows = sa.select(_own.id, _own.name).where(owned_by(USER_ID, _own))
        if self.is_of_flow:
            return flows.where(_own.id == FLOW_ID)
        if "flow_ids" in self.shape.names:
            return flows.where(_own.id.in_(sa.bindparam("flow_ids", expanding=True)))
        return flows

    def _of_each(self, sources: sa.CTE, limit: Number, is_wanted: Condition) -> tuple[sa.FromClause, Any]:
        """Each source, joined with its newest executions, and their columns."""
        wanted = sa.select(*_READ).where(_executions.flow_id == sources.c.id, *self._conditions())
        if self.shape.statuses:
            wanted = wanted.where(_executions.status == sources.c.status)
        newest = _newest_first(wanted.where(is_wanted(_executions)), _executions, limit, None).correlate(sources)
        if self.is_postgresql:
            lateral = newest.lateral()
            return sources.join(lateral, sa.true()), lateral.c
        # SQLite has no LATERAL.
        found = _executions_table.alias()
        return sources.join(found, found.c.id.in_(newest.with_only_columns(_executions.id))), found.c


def _constant(number: int) -> Number:
    """A number in the text of the statement. If LIMIT is a parameter, PostgreSQL does not reuse the plan."""
    return sa.literal_column(str(number), sa.BigInteger)


def _newest_first(rows: sa.Select[Any], columns: Any, limit: Number, offset: Number | None) -> sa.Select[Any]:
    return rows.order_by(columns.started_at.desc(), columns.id.desc()).limit(limit).offset(offset)


def _is_anywhere(columns: Any) -> sa.ColumnElement[bool]:
    return sa.true()


def _is_after_cursor(columns: Any) -> sa.ColumnElement[bool]:
    last = sa.bindparam("last_started_at", type_=UtcDateTime()), sa.bindparam("last_id", type_=sa.Uuid())
    return sa.tuple_(columns.started_at, columns.id) < sa.tuple_(*last)
