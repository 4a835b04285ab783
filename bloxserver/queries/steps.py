from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from bloxserver.errors import NotFound
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord, FlowRecord, ResumptionRecord
from bloxserver.models.types import text_bytes
from bloxserver.queries.execution_costs import cost_of_step, costs_of_steps
from bloxserver.queries.paging import Page, PageRequest, read_rows
from bloxserver.queries.requesters import owned_by

WAITING = (StepStatus.WAITING, StepStatus.RETRYING, StepStatus.CALLING)
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
"""Of all payloads on one page of steps: a thousand large steps would be gigabytes."""
ENDED = (StepStatus.SUCCESS, StepStatus.ERROR, StepStatus.CANCELLED)


async def read_steps(
    session: AsyncSession, user_id: UUID, flow_id: UUID, execution_id: UUID, page: PageRequest
) -> Page:
    """A page of the steps of an execution of the user's flow, the oldest first; raises `NotFound`."""
    of_execution = ExecutionStepRecord.execution_id == execution_id
    count = sa.select(sa.func.count()).select_from(ExecutionStepRecord).where(of_execution).scalar_subquery()
    total = await session.scalar(
        sa.select(count)
        .select_from(ExecutionRecord)
        .join(FlowRecord, FlowRecord.id == ExecutionRecord.flow_id)
        .where(owned_by(user_id), FlowRecord.id == flow_id, ExecutionRecord.id == execution_id)
    )
    if total is None:
        raise NotFound("Execution")
    rows = await read_rows(session, _page_of_steps(execution_id, page))
    return Page(rows, total, page.page, page.page_size)


def _page_of_steps(execution_id: UUID, page: PageRequest) -> sa.Select[Any]:
    """The steps of a page. Beyond `MAX_PAYLOAD_BYTES`, the payloads of all steps but the first are left out."""
    step = ExecutionStepRecord
    order = (step.started_at, step.id)
    of_page = (
        sa.select(step.id, (_bytes(step.input_payload) + _bytes(step.output_payload)).label("size"))
        .where(step.execution_id == execution_id)
        .order_by(*order)
        .limit(page.page_size)
        .offset(page.offset)
        .subquery()
    )
    sized = (
        sa.select(
            step.id,
            sa.func.sum(of_page.c.size).over(order_by=order).label("bytes"),
            sa.func.row_number().over(order_by=order).label("place"),
        )
        .join(of_page, of_page.c.id == step.id)
        .subquery()
    )
    costs = costs_of_steps(execution_id)
    is_shown = sa.or_(sized.c.bytes <= MAX_PAYLOAD_BYTES, sized.c.place == 1)
    return (
        sa.select(
            *_outline(),
            cost_of_step(step, costs),
            sa.case((is_shown, step.input_payload)).label("input_payload"),
            sa.case((is_shown, step.output_payload)).label("output_payload"),
            sa.type_coerce(sa.not_(is_shown), sa.Boolean()).label("payloads_omitted"),
        )
        .join(sized, sized.c.id == step.id)
        .outerjoin(costs, costs.c.step_id == step.id)
        .outerjoin(ResumptionRecord, _resumed(step))
        .order_by(*order)
    )


def _bytes(column: InstrumentedAttribute[str | None]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(text_bytes(column), 0)


class StepPosition(NamedTuple):
    """A position in the changes of an execution."""

    sequence: int
    id: UUID


async def read_step_changes(
    session: AsyncSession, execution_id: UUID, after: StepPosition, limit: int
) -> Sequence[Any]:
    """Steps, without payloads, that changed after a position, in the order of their changes."""
    sequence = ExecutionStepRecord.sequence
    costs = costs_of_steps(execution_id)
    rows = await session.execute(
        sa.select(*_outline(), cost_of_step(ExecutionStepRecord, costs), sequence)
        .outerjoin(costs, costs.c.step_id == ExecutionStepRecord.id)
        .outerjoin(ResumptionRecord, _resumed(ExecutionStepRecord))
        .where(
            ExecutionStepRecord.execution_id == execution_id,
            sequence >= after.sequence,
            sa.or_(sequence > after.sequence, ExecutionStepRecord.id > after.id),
        )
        .order_by(sequence, ExecutionStepRecord.id)
        .limit(limit)
    )
    return rows.all()


def _outline() -> list[Any]:
    """The columns of a step that the API returns, without payloads."""
    step = ExecutionStepRecord
    due_or_done = step.completed_at
    return [
        step.id,
        step.parent_id,
        sa.case((step.key.endswith("]"), step.key)).label("item_index"),
        step.listener,
        step.handler,
        step.status,
        step.attempt,
        step.copied,
        step.error_code,
        step.error_message,
        step.routed_to,
        step.called_id.label("called_execution_id"),
        step.started_at,
        sa.case((step.status.in_(ENDED), due_or_done)).label("completed_at"),
        sa.case((step.status.in_(WAITING), due_or_done)).label("resumes_at"),
        step.duration_ms,
        step.input_tokens,
        step.output_tokens,
        sa.func.coalesce(step.warnings, sa.literal([], step.warnings.type)).label("warnings"),
        ResumptionRecord.answered_by,
    ]


def _resumed(step: type[ExecutionStepRecord]) -> sa.ColumnElement[bool]:
    """The condition for the call whose body is the answer of a step."""
    return sa.and_(
        ResumptionRecord.execution_id == step.execution_id,
        ResumptionRecord.listener == step.listener,
        step.status == StepStatus.SUCCESS,
    )


class StepLink(NamedTuple):
    """The relation of a step to the other steps of its execution."""

    id: UUID
    parent_id: UUID | None
    key: str
    listener: str
    status: StepStatus
    error_code: str | None
    routed_to: list[str] | None


async def read_step_links(session: AsyncSession, execution_id: UUID) -> list[StepLink]:
    """All steps of an execution, in the order of their changes."""
    step = ExecutionStepRecord
    rows = await session.execute(
        sa.select(step.id, step.parent_id, step.key, step.listener, step.status, step.error_code, step.routed_to)
        .where(step.execution_id == execution_id)
        .order_by(step.sequence, step.started_at, step.id)
    )
    return [StepLink(*row) for row in rows]
