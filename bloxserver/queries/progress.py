"""The progress of executions, for those who watch them."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from bloxserver.queries.flows import flow_exists

MAX_IDS = 4096
"""Ids in one statement: both databases accept about 32,000 values."""


class Progress(NamedTuple):
    """The progress of an execution: it has changed if one of the values is another one."""

    status: ExecutionStatus
    sequence: int | None
    """The highest sequence number of its steps; None if it has none, or if it was not asked for."""


async def read_progress(
    session: AsyncSession, execution_ids: Collection[UUID], *, with_steps: bool = True
) -> dict[UUID, Progress]:
    """The progress of executions of any users; deleted ones are left out. One statement reads up to `MAX_IDS`."""
    dialect = session.get_bind().dialect.name
    ids = list(execution_ids)
    found: dict[UUID, Progress] = {}
    for begin in range(0, len(ids), MAX_IDS):
        part = ids[begin : begin + MAX_IDS]
        if dialect != "postgresql":
            # The number of ids is a power of two, so that there are few different statements to prepare.
            part += part[-1:] * ((1 << (len(part) - 1).bit_length()) - len(part))
        rows = await session.execute(_statement(dialect, with_steps), {"ids": part})
        found |= {row[0]: Progress(row[1], row[2]) for row in rows}
    return found


@lru_cache
def _statement(dialect: str, with_steps: bool) -> sa.Select[Any]:
    """Cached: building the statement takes longer than running it."""
    execution, step = ExecutionRecord.__table__.c, ExecutionStepRecord.__table__.c
    last: sa.ColumnElement[int | None] = (
        sa.select(sa.func.max(step.sequence)).where(step.execution_id == execution.id).scalar_subquery()
        if with_steps
        else sa.cast(sa.null(), sa.Integer())
    )
    wanted = (
        execution.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(execution.id.type)))
        if dialect == "postgresql"
        else execution.id.in_(sa.bindparam("ids", expanding=True))
    )
    return sa.select(execution.id, execution.status, last).where(wanted, flow_exists())
