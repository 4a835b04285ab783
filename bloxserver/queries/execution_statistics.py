"""Statistics of a flow, from totals that the database maintains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from bloxserver.errors import NotFound
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.percentiles import PERCENTS, percentiles, read_percentiles
from bloxserver.models.single_statements import Statements
from bloxserver.models.tables import ExecutionRecord, ExecutionTotalsRecord, FlowRecord
from bloxserver.queries.execution_places import NORMAL, total_of
from bloxserver.queries.requesters import FLOW_ID, REQUESTER_AND_FLOW, REQUESTER_COLUMNS, Requester, read_for

RECENT_DURATIONS = 1_000
"""The number of executions of which percentiles are calculated."""
COUNTERS = (
    "executions",
    *(status.value for status in ExecutionStatus),
    "durations",
    "duration_ms",
    "input_tokens",
    "output_tokens",
)

_flows_table = FlowRecord.__table__
_flows, _executions, _totals = _flows_table.c, ExecutionRecord.__table__.c, ExecutionTotalsRecord.__table__.c


def statement() -> sa.Select[Any]:
    totals = (
        sa.select(*(total_of(_totals[name]).label(name) for name in COUNTERS))
        .where(_totals.flow_id == FLOW_ID, _totals.mode == NORMAL)
        .subquery("totals")
    )
    newest_first = (
        sa.select(_executions.started_at)
        .where(_executions.flow_id == _flows.id, _executions.mode == NORMAL)
        .order_by(_executions.started_at.desc())
        .correlate(_flows_table)
    )
    recent = (
        newest_first.with_only_columns(_executions.duration_ms)
        .where(_executions.duration_ms.is_not(None))
        .limit(RECENT_DURATIONS)
        .subquery("recent")
    )
    durations = sa.select(percentiles(recent.c.duration_ms)).scalar_subquery()
    columns = [*REQUESTER_COLUMNS, _flows.id.label("flow_id"), *totals.c, durations.label("percentiles")]
    columns.append(newest_first.limit(1).scalar_subquery().label("last_executed_at"))
    return sa.select(*columns).select_from(REQUESTER_AND_FLOW.join(totals, sa.true()))


STATISTICS = statement()


async def read_statistics(session: Statements, requester: Requester, flow_id: UUID) -> Mapping[str, Any]:
    """The statistics of the requester's flow, in one statement. Raises `NotFound` for the flow."""
    (row,) = await read_for(requester, session, STATISTICS, {"flow_id": flow_id})
    if row.flow_id is None:
        raise NotFound("Flow")
    found = zip(PERCENTS, read_percentiles(row.percentiles), strict=True)
    return {
        "flow_id": flow_id,
        "executions_total": row.executions,
        **{f"executions_{status.value}": row._mapping[status.value] for status in ExecutionStatus},
        "avg_duration_ms": row.duration_ms / row.durations if row.durations else 0,
        **{f"p{percent}_duration_ms": duration_ms for percent, duration_ms in found},
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "last_executed_at": row.last_executed_at,
    }
