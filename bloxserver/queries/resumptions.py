"""Waits of executions for calls, and the calls that were received."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.enums import ExecutionStatus, StepStatus, Tier
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStepRecord,
    FlowRecord,
    FlowVersionRecord,
    ResumptionRecord,
    UserRecord,
)
from bloxserver.plans import Plan, get_plan
from bloxserver.queries.flows import flow_exists

REPEATED_WAIT = "wait_repeated"
"""The error of a step whose listener has waited before in its execution. The wait of the other step is not affected."""

MAX_RETRIES = 20
"""Retries of retries to which a URL leads."""


class Wait(NamedTuple):
    """The wait of a listener in an execution. It may not have begun."""

    execution_id: UUID
    listener: str
    user_id: UUID
    plan: Plan
    organism_yaml: str
    is_answered: bool
    output: str | None
    """The output of the waiting step as JSON; None before the wait begins."""


async def read_wait(session: AsyncSession, execution_id: UUID, listener: str, *, lock: bool = False) -> Wait:
    """The wait; with `lock`, the execution is locked until the transaction ends.

    If the execution has ended without a call, it is the wait of the latest retry of its failed steps: steps that sent
    the URL are not repeated. Raises `NotFound` if there is none, if the execution was deleted, and if the wait is over.
    """
    for _ in range(MAX_RETRIES):
        wanted = ExecutionRecord.id == execution_id, flow_exists()
        if lock:
            await session.execute(sa.select(ExecutionRecord.id).where(*wanted).with_for_update())
        row = (await session.execute(_execution().where(*wanted))).first()
        if row is None:
            break
        of_listener = ResumptionRecord.execution_id == execution_id, ResumptionRecord.listener == listener
        is_answered = await session.scalar(sa.select(sa.exists().where(*of_listener))) or False
        if is_answered or row.status is ExecutionStatus.RUNNING:
            output = None if is_answered else await _read_output(session, execution_id, listener)
            plan = get_plan(row.tier or Tier.FREE, row.limits, row.billing_status)
            return Wait(execution_id, listener, row.user_id, plan, row.organism_yaml, is_answered, output)
        retry = await session.scalar(_latest_retry(execution_id))
        if retry is None:
            break
        execution_id = retry
    raise NotFound("Wait")


def _latest_retry(execution_id: UUID) -> sa.Select[UUID]:
    """The latest retry that has steps of the execution."""
    step = ExecutionStepRecord
    has_copies = sa.exists().where(step.execution_id == ExecutionRecord.id, step.copied)
    return (
        sa.select(ExecutionRecord.id)
        .where(ExecutionRecord.retry_of == execution_id, has_copies)
        .order_by(ExecutionRecord.started_at.desc(), ExecutionRecord.id.desc())
        .limit(1)
    )


def _execution() -> sa.Select[Any]:
    organism = sa.func.coalesce(FlowVersionRecord.organism_yaml, FlowRecord.organism_yaml).label("organism_yaml")
    return (
        sa.select(
            ExecutionRecord.status,
            FlowRecord.user_id,
            organism,
            UserRecord.tier,
            UserRecord.limits,
            UserRecord.billing_status,
        )
        .select_from(ExecutionRecord)
        .join(FlowRecord, FlowRecord.id == ExecutionRecord.flow_id)
        .outerjoin(FlowVersionRecord, FlowVersionRecord.id == ExecutionRecord.flow_version_id)
        .outerjoin(UserRecord, UserRecord.id == FlowRecord.user_id)
    )


async def _read_output(session: AsyncSession, execution_id: UUID, listener: str) -> str | None:
    """The output of the waiting step. Raises `NotFound` if the wait is over."""
    step = ExecutionStepRecord
    steps = await session.execute(
        sa.select(step.status, step.completed_at, step.output_payload)
        .where(
            step.execution_id == execution_id,
            step.listener == listener,
            step.error_code.is_distinct_from(REPEATED_WAIT),
        )
        .order_by(step.sequence)
    )
    output: str | None = None
    for row in steps:
        if row.status is StepStatus.WAITING and _is_future(row.completed_at):
            output = row.output_payload
        elif row.status in (StepStatus.WAITING, StepStatus.SUCCESS, StepStatus.ERROR, StepStatus.CANCELLED):
            raise NotFound("Wait")
    return output


def _is_future(moment: datetime | None) -> bool:
    return moment is None or moment > now()


async def read_received(session: AsyncSession, execution_id: UUID) -> dict[str, str | None]:
    """The bodies of the calls that an execution has received, by listener."""
    wanted = sa.select(ResumptionRecord.listener, ResumptionRecord.payload).where(
        ResumptionRecord.execution_id == execution_id
    )
    return {row.listener: row.payload for row in await session.execute(wanted)}


async def read_resumed(session: AsyncSession, execution_ids: Collection[UUID]) -> dict[UUID, set[str]]:
    """The listeners whose calls were received, by execution."""
    resumed: dict[UUID, set[str]] = {}
    wanted = sa.select(ResumptionRecord.execution_id, ResumptionRecord.listener).where(
        ResumptionRecord.execution_id.in_(execution_ids)
    )
    for row in await session.execute(wanted):
        resumed.setdefault(row.execution_id, set()).add(row.listener)
    return resumed
