"""Lists of executions, as the JSON that the database writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from bloxserver.errors import NotFound, Unprocessable
from bloxserver.models.single_statements import Statements
from bloxserver.queries.cursors import Position, read_cursor, write_cursor
from bloxserver.queries.execution_filters import SEARCHED, ExecutionFilter
from bloxserver.queries.execution_pages import MAX_COUNT, Paging, flow_page, user_page
from bloxserver.queries.paging import PageRequest
from bloxserver.queries.requesters import Requester, read_for

MAX_READ_OFFSET = 10_000
"""The number of rows that a page may skip by reading them."""
MIN_SERIES_OFFSET = 1_000
"""Fewer rows are read faster than their counters."""
LIMITS = (21, 51, 101, 201, 1_001)
"""The numbers of rows that statements read: usual sizes of pages, and the first row of the next page."""


@dataclass(frozen=True)
class ListRequest:
    """A page of a list: by its number, or after the last item of another page."""

    filter: ExecutionFilter
    page: PageRequest
    cursor: str | None = None


@dataclass(frozen=True)
class ExecutionList:
    """One page of a list of executions."""

    items: list[str]
    """Each as JSON."""
    total: int
    total_is_exact: bool
    page: int
    page_size: int
    has_more: bool
    next_cursor: str | None


async def read_executions(
    session: Statements, requester: Requester, flow_id: UUID, request: ListRequest
) -> ExecutionList:
    """A page of the executions of the requester's flow, the newest first.

    Raises `NotFound` for the flow, `BadRequest` for the cursor, and `Unprocessable` for a page that would be too slow.
    """
    shape = request.filter.shape
    paging = _paging(request, can_count=shape.has_maintained_total)
    name = f"{flow_id} {request.filter}"
    statement = flow_page(shape, paging, _limit(request), session.get_bind().dialect.name)
    (row,) = await read_for(requester, session, statement, _parameters(request, name) | {"flow_id": flow_id})
    if row.flow_id is None:
        raise NotFound("Flow")
    return _list(row, request, name)


async def read_all_executions(session: Statements, requester: Requester, request: ListRequest) -> ExecutionList:
    """A page of the executions of all flows of the requester. Raises `BadRequest` and `Unprocessable`."""
    paging = _paging(request, can_count=False)
    name = f"{request.filter}"
    statement = user_page(request.filter.shape, paging, _limit(request), session.get_bind().dialect.name)
    (row,) = await read_for(requester, session, statement, _parameters(request, name))
    return _list(row, request, name)


def _paging(request: ListRequest, *, can_count: bool) -> Paging:
    offset = request.page.offset
    if request.cursor is not None:
        if offset:
            raise Unprocessable({"query.page": "Must be 1 if cursor is given"})
        return Paging.CURSOR
    if can_count and offset >= MIN_SERIES_OFFSET:
        return Paging.SERIES
    if offset > MAX_READ_OFFSET:
        raise Unprocessable(
            {"query.page": f"With these filters, a page begins within the first {MAX_READ_OFFSET} items. Use cursor"}
        )
    return Paging.OFFSET if offset else Paging.START


def _limit(request: ListRequest) -> int:
    return next(limit for limit in LIMITS if limit > request.page.page_size)


def _parameters(request: ListRequest, name: str) -> dict[str, Any]:
    parameters = request.filter.parameters()
    parameters["offset"] = request.page.offset
    if request.cursor is not None:
        position = read_cursor(request.cursor, name)
        parameters |= {"last_started_at": position.started_at, "last_id": position.id}
    return parameters


def _list(row: sa.Row[Any], request: ListRequest, name: str) -> ExecutionList:
    items: list[str] = row.lines.split("\n") if row.lines else []
    has_more = len(items) > request.page.page_size
    del items[request.page.page_size :]
    shape = request.filter.shape
    limit = SEARCHED if shape.is_search else MAX_COUNT
    is_exact = row.matching <= limit or (shape.has_maintained_total and not shape.is_search)
    return ExecutionList(
        items,
        total=row.found if shape.is_search else row.matching if is_exact else limit,
        total_is_exact=is_exact,
        page=request.page.page,
        page_size=request.page.page_size,
        has_more=has_more,
        next_cursor=write_cursor(_position(items[-1]), name) if has_more else None,
    )


def _position(line: str) -> Position:
    item = json.loads(line)
    return Position(datetime.fromisoformat(item["startedAt"]), UUID(item["id"]))
