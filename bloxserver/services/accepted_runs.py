"""Counts and inserts the executions of users without a hard limit of runs: on PostgreSQL in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.ids import new_id
from bloxserver.models.array_rows import array_rows, arrays_of
from bloxserver.models.tables import ExecutionRecord, UsageRecord
from bloxserver.models.upsert import insert_on
from bloxserver.queries.usage import Period
from bloxserver.services.usage import any_slot

_executions, _usage = (ExecutionRecord.metadata.tables[kind.__tablename__] for kind in (ExecutionRecord, UsageRecord))
EXECUTION_COLUMNS = (
    "id",
    "flow_id",
    "flow_version_id",
    "flow_version",
    "trigger_id",
    "trigger_type",
    "target",
    "started_at",
    "input_payload",
    "input_encoding",
    "depth",
    "trace_parent",
    "vars_id",
    "trigger_context",
)
USAGE_COLUMNS = ("id", "user_id", "period_start", "period_end", "slot", "workflow_runs")


class AcceptedRun(NamedTuple):
    """An execution, with the values of `EXECUTION_COLUMNS`, and the user and the period for which it counts."""

    execution: dict[str, Any]
    user_id: UUID
    period: Period


async def insert_runs(session: AsyncSession, runs: Sequence[AcceptedRun]) -> None:
    """Insert executions and count them. The caller has locked their flows and checked the limits of the users."""
    usage = _usage_of(runs)
    executions = [run.execution for run in runs]
    if session.get_bind().dialect.name == "postgresql":
        arrays = arrays_of("execution", EXECUTION_COLUMNS, executions) | arrays_of("usage", USAGE_COLUMNS, usage)
        await session.execute(_postgresql_statement(), arrays)
    else:
        await session.execute(_sqlite_usage(), usage)
        await session.execute(_SQLITE_EXECUTIONS, executions)


def _usage_of(runs: Sequence[AcceptedRun]) -> list[dict[str, Any]]:
    """One row for each user and period. All transactions lock the rows of users in the same order."""
    numbers: dict[tuple[UUID, Period], int] = {}
    for run in runs:
        key = run.user_id, run.period
        numbers[key] = numbers.get(key, 0) + 1
    return [
        {
            "id": new_id(),
            "user_id": user_id,
            "period_start": period.start,
            "period_end": period.end,
            "slot": any_slot(),
            "workflow_runs": number,
        }
        for (user_id, period), number in sorted(numbers.items(), key=lambda item: (item[0][0], item[0][1].start))
    ]


def _upsert_of_usage(statement: Any) -> Any:
    return statement.on_conflict_do_update(
        index_elements=["user_id", "period_start", "slot"],
        set_={"workflow_runs": _usage.c.workflow_runs + statement.excluded.workflow_runs},
    )


def _rows(name: str, table: sa.Table, columns: Sequence[str]) -> sa.Select[Any]:
    return sa.select(*array_rows(name, {column: table.c[column].type for column in columns}).c)


@cache
def _postgresql_statement() -> sa.Executable:
    rows = _rows("execution", _executions, EXECUTION_COLUMNS)
    counted = insert_on("postgresql", _usage).from_select(
        USAGE_COLUMNS, _rows("usage", _usage, USAGE_COLUMNS), include_defaults=False
    )
    return (
        sa.insert(_executions)
        .from_select(EXECUTION_COLUMNS, rows, include_defaults=False)
        .add_cte(_upsert_of_usage(counted).cte("counted"))
    )


@cache
def _sqlite_usage() -> sa.Executable:
    values = {name: sa.bindparam(name, type_=_usage.c[name].type) for name in USAGE_COLUMNS}
    statement: sa.Executable = _upsert_of_usage(insert_on("sqlite", _usage).values(values))
    return statement


_SQLITE_EXECUTIONS = sa.insert(_executions).values(
    {name: sa.bindparam(name, type_=_executions.c[name].type) for name in EXECUTION_COLUMNS}
)
