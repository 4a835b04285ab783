"""What the calls of language models of executions and steps cost, as parts of statements about these."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import LlmCallRecord

NANO = 1_000_000_000

_calls = LlmCallRecord.__table__.c


def cost_of_execution(execution: Any) -> sa.ColumnElement[float | None]:
    """The cost in US dollars; null if no price is known. `execution` has the columns `id` and `input_tokens`.

    Calls are read only for an execution that has used tokens.
    """
    cost = sa.select(_dollars()).where(_calls.execution_id == execution.id).scalar_subquery()
    return _unless_unused(execution.input_tokens, cost)


async def read_cost(session: AsyncSession, execution_id: UUID) -> int:
    """The cost of an execution in billionths of a US dollar, without calls whose price is unknown."""
    cost = await session.scalar(sa.select(sa.func.sum(_calls.cost_nanousd)).where(_calls.execution_id == execution_id))
    return int(cost or 0)


def day_of(moment: datetime) -> datetime:
    """The beginning of the day in UTC for which daily budgets count."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


async def read_cost_since(session: AsyncSession, begin: datetime, flow: tuple[UUID, UUID] | None) -> int:
    """The cost of the calls of a flow since a time, in billionths of a US dollar.

    `flow` has the ids of the user and of the flow. If it is None, it is the cost of all calls with the operator's keys.
    """
    cost = sa.select(sa.func.sum(_calls.cost_nanousd)).where(_calls.created_at >= begin)
    if flow is None:
        cost = cost.where(_calls.own_key.is_(sa.false()))
    else:
        # An index has the calls of a user.
        cost = cost.where(_calls.user_id == flow[0], _calls.flow_id == flow[1])
    return int(await session.scalar(cost) or 0)


def costs_of_steps(execution_id: UUID) -> sa.Subquery:
    """The costs in US dollars of the steps of an execution, by `step_id`."""
    costs = sa.select(_calls.step_id, _dollars().label("cost")).where(_calls.execution_id == execution_id)
    return costs.group_by(_calls.step_id).subquery("costs")


def cost_of_step(step: Any, costs: sa.Subquery) -> sa.ColumnElement[float | None]:
    """The cost of a step, which is joined with `costs_of_steps`. `step` has the column `input_tokens`."""
    return _unless_unused(step.input_tokens, costs.c.cost)


def _dollars() -> sa.ColumnElement[Any]:
    return sa.cast(sa.func.sum(_calls.cost_nanousd), sa.Double()) / sa.literal(float(NANO), sa.Double())


def _unless_unused(input_tokens: sa.ColumnElement[int], cost: sa.ColumnElement[Any]) -> sa.ColumnElement[float | None]:
    return sa.case((input_tokens > 0, cost), else_=sa.literal(0.0, sa.Double())).label("cost_usd")
