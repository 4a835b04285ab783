"""The plans of statements for pages. `test_execution_lists` checks what they return."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from bloxserver.models.enums import ExecutionStatus, TriggerType
from bloxserver.queries.execution_filters import ExecutionFilter
from bloxserver.queries.execution_pages import Paging, flow_page, user_page

S = ExecutionStatus
UNINDEXED = ExecutionFilter(trigger_types=(TriggerType.MANUAL,), min_duration_ms=3)


def statements() -> Iterator[Any]:
    for name, statuses in (("", ()), ("status", (S.ERROR,)), ("statuses", (S.ERROR, S.TIMEOUT))):
        shape = ExecutionFilter(statuses=statuses).shape
        for paging in Paging:
            yield pytest.param(
                flow_page(shape, paging, 51, "sqlite"),
                len(statuses) < 2 and paging is not Paging.SERIES,
                id=f"flow-{paging.name}-{name}",
            )
        yield pytest.param(user_page(shape, Paging.OFFSET, 51, "sqlite"), False, id=f"user-{name}")
    yield pytest.param(user_page(UNINDEXED.shape, Paging.OFFSET, 51, "sqlite"), False, id="user-other-filters")
    yield pytest.param(flow_page(UNINDEXED.shape, Paging.OFFSET, 51, "sqlite"), True, id="flow-other-filters")
    yield pytest.param(
        flow_page(ExecutionFilter(error_text="x").shape, Paging.CURSOR, 51, "sqlite"), False, id="search"
    )


@pytest.mark.parametrize(("statement", "is_of_one_source"), list(statements()))
def test_executions_are_read_by_an_index_in_the_order_of_the_list(
    sqlite_tables: str, statement: sa.Select[Any], is_of_one_source: bool
) -> None:
    sql = re.sub(r"\?|__\[POSTCOMPILE_\w+\]", "1", str(statement.compile(dialect=sqlite.dialect())))
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(sqlite_tables)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
    reads = [detail for detail in plan if re.search(r"\bexecutions(_\d)?\b", detail)]
    assert reads
    assert all(detail.startswith("SEARCH") and " INDEX " in detail for detail in reads)
    if is_of_one_source:
        assert not any("USE TEMP B-TREE FOR ORDER BY" in detail for detail in plan)
