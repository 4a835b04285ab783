from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import with_expression
from sqlalchemy.orm.attributes import set_committed_value

from bloxserver.errors import NotFound
from bloxserver.models.single_statements import Statements
from bloxserver.models.tables import ExecutionRecord, FlowRecord, TriggerRecord
from bloxserver.queries.execution_costs import cost_of_execution
from bloxserver.queries.flows import flow_exists
from bloxserver.queries.requesters import REQUESTER_AND_FLOW, REQUESTER_COLUMNS, Requester, owned_by, read_for


async def read_execution(
    session: AsyncSession, user_id: UUID, flow_id: UUID, execution_id: UUID, *, lock: bool = False
) -> ExecutionRecord:
    """One execution of the user's flow; `lock` prevents its deletion until the transaction ends. Raises `NotFound`."""
    wanted = (
        _with_trigger()
        .join(FlowRecord, FlowRecord.id == ExecutionRecord.flow_id)
        .where(owned_by(user_id), FlowRecord.id == flow_id, ExecutionRecord.id == execution_id)
    )
    if lock:
        wanted = wanted.with_for_update(read=True, key_share=True, of=ExecutionRecord)
    execution = await _first(session, wanted)
    if execution is None:
        raise NotFound("Execution")
    return execution


async def read_execution_of(
    session: Statements, requester: Requester, flow_id: UUID, execution_id: UUID
) -> sa.Row[Any]:
    """The columns of one execution of the requester's flow, in one statement. Raises `NotFound`."""
    (row,) = await read_for(requester, session, _ONE, {"flow_id": flow_id, "execution_id": execution_id})
    if row.id is None:
        raise NotFound("Execution")
    return row


async def find_execution(session: AsyncSession, execution_id: UUID) -> ExecutionRecord | None:
    """An execution of any user, as it is stored now; None if it was deleted."""
    return await _first(session, _with_trigger().where(ExecutionRecord.id == execution_id, flow_exists()))


def _with_trigger() -> sa.Select[ExecutionRecord, UUID | None]:
    """Executions with their costs, and the triggers that started them unless these were deleted."""
    return (
        sa.select(ExecutionRecord, _trigger_id())
        .outerjoin(TriggerRecord, TriggerRecord.id == ExecutionRecord.trigger_id)
        # Refresh a row that the session has loaded: the engine writes it in other sessions.
        .execution_options(populate_existing=True)
        .options(with_expression(ExecutionRecord.cost_usd, cost_of_execution(ExecutionRecord.__table__.c)))
    )


def _trigger_id() -> sa.ColumnElement[UUID | None]:
    """The execution's trigger; null if it was deleted, although the execution may still refer to it."""
    executions, triggers = ExecutionRecord.__table__.c, TriggerRecord.__table__.c
    return sa.case((triggers.deleted_at.is_(None), executions.trigger_id)).label("trigger_id")


async def _first(session: AsyncSession, wanted: sa.Select[ExecutionRecord, UUID | None]) -> ExecutionRecord | None:
    row = (await session.execute(wanted)).first()
    if row is None:
        return None
    execution: ExecutionRecord = row[0]
    set_committed_value(execution, "trigger_id", row[1])
    return execution


_executions, _triggers = ExecutionRecord.__table__, TriggerRecord.__table__
_ONE = sa.select(
    *REQUESTER_COLUMNS,
    *(column for column in _executions.c if column.name != "trigger_id"),
    _trigger_id(),
    cost_of_execution(_executions.c),
).select_from(
    REQUESTER_AND_FLOW.outerjoin(
        _executions,
        sa.and_(
            _executions.c.flow_id == FlowRecord.__table__.c.id,
            _executions.c.id == sa.bindparam("execution_id", type_=_executions.c.id.type),
        ),
    ).outerjoin(_triggers, _triggers.c.id == _executions.c.trigger_id)
)


async def require_execution(session: AsyncSession, user_id: UUID, flow_id: UUID, execution_id: UUID) -> None:
    """Raise `NotFound` unless the execution belongs to the user's flow."""
    found = await session.scalar(
        sa.select(ExecutionRecord.id)
        .join(FlowRecord, FlowRecord.id == ExecutionRecord.flow_id)
        .where(owned_by(user_id), FlowRecord.id == flow_id, ExecutionRecord.id == execution_id)
    )
    if found is None:
        raise NotFound("Execution")


async def read_outline(session: AsyncSession, execution_id: UUID) -> sa.Row[Any] | None:
    """An execution of any user, without its payloads; None if it was deleted."""
    replaced = {"input_payload", "output_payload", "trigger_id"}
    columns = [column for column in ExecutionRecord.__table__.columns if column.name not in replaced]
    wanted = (
        sa.select(*columns, _trigger_id(), cost_of_execution(ExecutionRecord.__table__.c))
        .outerjoin(TriggerRecord, TriggerRecord.id == ExecutionRecord.trigger_id)
        .where(ExecutionRecord.id == execution_id, flow_exists())
    )
    rows: sa.Result[Any] = await session.execute(wanted)
    return rows.first()
