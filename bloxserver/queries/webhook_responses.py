"""What the callers of webhooks wait for."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from bloxserver.queries.flows import flow_exists

RESPOND = "respond"
"""The name of the block whose answer is a response."""


class Ending(NamedTuple):
    """The status of an execution, and what its caller gets."""

    status: ExecutionStatus
    error: str | None
    answer: str | None
    """Its output, or its response, as JSON."""


async def read_output(session: AsyncSession, execution_id: UUID) -> Ending | None:
    """The output of an execution of any user; None if it was deleted."""
    return await _read(session, _with_output(), execution_id)


async def read_response(session: AsyncSession, execution_id: UUID) -> Ending | None:
    """The answer of the first `respond` block that has answered; None if the execution was deleted."""
    return await _read(session, _with_response(), execution_id)


async def _read(session: AsyncSession, statement: sa.Executable, execution_id: UUID) -> Ending | None:
    row = (await session.execute(statement, {"id": execution_id})).first()
    return None if row is None else Ending(*row)


@cache
def _with_output() -> sa.Executable:
    return _ending(ExecutionRecord.__table__.c.output_payload)


@cache
def _with_response() -> sa.Executable:
    step = ExecutionStepRecord.__table__.c
    wanted = (
        step.execution_id == ExecutionRecord.__table__.c.id,
        step.handler == RESPOND,
        step.status == StepStatus.SUCCESS,
    )
    first = sa.select(step.output_payload).where(*wanted).order_by(step.sequence, step.id).limit(1)
    return _ending(first.scalar_subquery())


def _ending(answer: sa.ColumnElement[Any]) -> sa.Executable:
    row = ExecutionRecord.__table__.c
    is_wanted = row.id == sa.bindparam("id", type_=row.id.type)
    return sa.select(row.status, row.error_message, answer.label("answer")).where(is_wanted, flow_exists())
