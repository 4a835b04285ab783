"""Claims: a worker leases executions that are due. Claims that are unknown to their worker are released."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.queue.selection import read_next_executions
from bloxserver.engine.queue.values import CalledResult, ClaimLockBusy, LeaseKey
from bloxserver.isolation.limits import CpuTime
from bloxserver.models.database import WakeReason, begin_writing, wake_engine_after_commit
from bloxserver.models.enums import ExecutionStatus, StepStatus, Tier, TriggerType
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStepRecord,
    FlowRecord,
    FlowVarsRecord,
    FlowVersionRecord,
    UserRecord,
    WorkerRecord,
)
from bloxserver.models.types import database_now
from bloxserver.plans import Plan, get_plan
from bloxserver.queries.flows import flow_exists
from bloxserver.queries.usage import Period, period_at, stored_bytes_of

CLAIM_LOCK = 0x626C6F78_636C61
"""Advisory lock: workers claim one after the other, so that the running executions of a user are counted exactly."""
MAX_IDS = 5_000
"""Ids in one statement: both databases accept about 32,000 values."""


_executions = ExecutionRecord.metadata.tables[ExecutionRecord.__tablename__]
CLAIMED_COLUMNS = (
    "id",
    "flow_id",
    "flow_version_id",
    "input_payload",
    "target",
    "parent_id",
    "depth",
    "active_ms",
    "cpu_ms",
    "input_tokens",
    "output_tokens",
    "crash_count",
    "trace_parent",
    "trigger_type",
    "started_at",
    "resume_at",
    "picked_up_at",
    "retry_of",
    "vars_id",
    "trigger_context",
)


@dataclass(slots=True, weakref_slot=True)
class ClaimedExecution:
    """An execution with the lease of this worker, and what is needed to run it. Not changed, but not frozen, which
    takes longer to make.
    """

    id: UUID
    lease: UUID
    flow_id: UUID
    user_id: UUID
    tier: str
    """The owner's tier."""
    plan: Plan
    """The owner's plan."""
    stored_bytes: int
    """The bytes that the owner stored when this worker claimed the execution."""
    period: Period
    """The owner's billing period."""
    parent_id: UUID | None
    depth: int
    input_payload: str | None
    target: str | None
    organism_yaml: str
    active_ms: int
    """Time that workers spent on the execution before this claim."""
    input_tokens: int
    output_tokens: int
    crash_count: int
    trace_parent: str | None
    trigger_type: TriggerType
    started_at: datetime
    """When the execution was accepted."""
    picked_up_at: datetime
    """When it was first claimed."""
    is_new: bool
    """Whether this is its first claim."""
    waited: timedelta | None
    """Time since it was due; None for an execution that a worker released or lost."""
    has_steps: bool
    """Whether it may have steps: it was claimed before, or continues those of the execution that it retries."""
    retry_of: UUID | None = None
    trigger_context: str | None = None
    """What expressions can read of its trigger, as JSON."""
    vars: str | None = None
    """The variables of the flow at its acceptance, as JSON."""
    steps: Sequence[ExecutionStepRecord] = ()
    """Set by `with_steps`."""
    cpu: CpuTime = field(default_factory=CpuTime)
    """The CPU time in other processes, in this claim and those before. It grows while the execution runs."""
    called: Mapping[UUID, CalledResult] = field(default_factory=dict)
    """Results of the executions that its steps called; set by `with_steps`."""
    claimed_at: float = field(default_factory=time.monotonic)
    """By the monotonic clock of this process."""

    @property
    def lease_key(self) -> LeaseKey:
        return self.id, self.lease

    def active_until_now_ms(self) -> int:
        """Time that workers spent on the execution, including this claim."""
        return self.active_ms + int((time.monotonic() - self.claimed_at) * 1000)

    def cpu_until_now_ms(self) -> int:
        return int(self.cpu.seconds * 1000)


async def claim_executions(
    session: AsyncSession,
    worker_id: str,
    lease: UUID,
    slots: Mapping[str, int],
    slots_per_user: Mapping[str, int],
    quarantined: int = 1,
    *,
    heartbeat_timeout: timedelta | None = None,
) -> list[ClaimedExecution]:
    """Claim due executions: up to `slots` per tier, and at most `quarantined` from quarantine.

    On PostgreSQL, with `heartbeat_timeout`, a worker whose stored heartbeat is older than that claims nothing, so that
    a new lease is never expired from the start. Raises `ClaimLockBusy`.
    """
    is_postgres = session.get_bind().dialect.name == "postgresql"
    if is_postgres:
        await begin_writing(session)  # a session for reading would release the lock at the end of this statement
        locked = await session.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(CLAIM_LOCK)))
        if not locked:
            raise ClaimLockBusy
    chosen = await read_next_executions(session, now(), slots, slots_per_user, quarantined)
    if not chosen:
        return []
    if not is_postgres:
        # The one worker of SQLite reads without the lock of the file: no other claims in between.
        await begin_writing(session)
    moment = now()  # read again: executions may have been accepted while the transaction waited
    values = {"chosen": chosen, "new_lease": lease, "worker": worker_id, "moment": moment}
    if needs_heartbeat := is_postgres and heartbeat_timeout is not None:
        values["heartbeat_timeout"] = heartbeat_timeout
    claimed = await session.execute(_claim(needs_heartbeat=needs_heartbeat), values)
    by_id = {row.id: row for row in claimed}
    return await _with_details(session, lease, moment, [by_id[id_] for id_ in chosen if id_ in by_id])


@cache
def _claim(*, needs_heartbeat: bool) -> sa.Executable:
    """Built once, as all statements that each execution needs: building one takes longer than executing it.

    A row that another transaction ends or deletes is skipped: a claim that never waits cannot cause a deadlock.
    """
    waits = _executions.c.status == ExecutionStatus.RUNNING, _executions.c.lease.is_(None)
    chosen = _executions.c.id.in_(sa.bindparam("chosen", expanding=True))
    unlocked = sa.select(_executions.c.id).where(chosen, *waits).with_for_update(skip_locked=True)
    conditions: list[sa.ColumnElement[bool]] = [_executions.c.id.in_(unlocked)]
    worker = sa.bindparam("worker", type_=_executions.c.worker_id.type)
    if needs_heartbeat:
        conditions.append(_has_fresh_heartbeat(worker, sa.bindparam("heartbeat_timeout", type_=sa.Interval())))
    moment = sa.bindparam("moment", type_=_executions.c.picked_up_at.type)
    return (
        sa.update(_executions)
        .where(*conditions)
        .values(
            lease=sa.bindparam("new_lease", type_=_executions.c.lease.type),
            worker_id=worker,
            picked_up_at=sa.func.coalesce(_executions.c.picked_up_at, moment),
        )
        .returning(*(_executions.c[name] for name in CLAIMED_COLUMNS))
    )


async def _with_details(
    session: AsyncSession, lease: UUID, moment: datetime, rows: Sequence[Any]
) -> list[ClaimedExecution]:
    flows = await _flows(session, {row.flow_id for row in rows})
    organisms = await _versions(session, {row.flow_version_id for row in rows if row.flow_version_id is not None})
    vars = await _vars(session, {row.vars_id for row in rows if row.vars_id is not None})
    executions: list[ClaimedExecution] = []
    plans = {id_: get_plan(flow.tier or Tier.FREE, flow.limits) for id_, flow in flows.items()}
    periods = {id_: period_at(now(), flow.current_period_start, flow.current_period_end) for id_, flow in flows.items()}
    for row in rows:
        flow = flows[row.flow_id]
        executions.append(
            ClaimedExecution(
                id=row.id,
                lease=lease,
                flow_id=row.flow_id,
                user_id=flow.user_id,
                tier=(flow.tier or Tier.FREE).value,
                plan=plans[row.flow_id],
                stored_bytes=flow.stored_bytes,
                period=periods[row.flow_id],
                parent_id=row.parent_id,
                depth=row.depth,
                input_payload=row.input_payload,
                target=row.target,
                organism_yaml=organisms.get(row.flow_version_id) or flow.organism_yaml,
                active_ms=row.active_ms,
                cpu=CpuTime(row.cpu_ms / 1000),
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                crash_count=row.crash_count,
                trace_parent=row.trace_parent,
                trigger_type=row.trigger_type,
                started_at=row.started_at,
                picked_up_at=row.picked_up_at,
                is_new=(is_new := row.picked_up_at == moment),
                waited=_waited(row, moment),
                has_steps=not is_new or row.retry_of is not None,
                retry_of=row.retry_of,
                trigger_context=row.trigger_context,
                vars=vars.get(row.vars_id),
            )
        )
    return executions


async def with_steps(session: AsyncSession, execution: ClaimedExecution) -> ClaimedExecution:
    """The execution with its steps, read in a separate transaction, because an error must not undo the claim."""
    query = sa.select(ExecutionStepRecord).where(ExecutionStepRecord.execution_id == execution.id)
    steps = (await session.scalars(query)).all()
    called = {step.called_id for step in steps if step.status is StepStatus.CALLING and step.called_id}
    results = await read_call_results(session, called) if called else {}
    return replace(
        execution,
        steps=steps,
        called={called_id: result for (parent, called_id), result in results.items() if parent == execution.id},
    )


async def read_call_results(
    session: AsyncSession, called: Collection[UUID]
) -> dict[tuple[UUID | None, UUID], CalledResult]:
    """Results of these executions, by the id of their caller and their own; deleted ones are left out.

    One statement reads up to `MAX_IDS` executions.
    """
    ids, results = list(called), {}
    for begin in range(0, len(ids), MAX_IDS):
        rows = await session.execute(
            sa.select(
                ExecutionRecord.parent_id,
                ExecutionRecord.id,
                ExecutionRecord.status,
                ExecutionRecord.output_payload,
                ExecutionRecord.error_message,
            ).where(ExecutionRecord.id.in_(ids[begin : begin + MAX_IDS]), flow_exists())
        )
        for row in rows:
            results[row.parent_id, row.id] = CalledResult(row.status, row.output_payload, row.error_message)
    return results


def _waited(row: Any, moment: datetime) -> timedelta | None:
    if row.crash_count or (row.resume_at is None and row.picked_up_at != moment):
        return None
    due: datetime = row.resume_at or row.started_at
    return max(timedelta(), moment - due)


async def _flows(session: AsyncSession, flow_ids: Collection[UUID]) -> dict[UUID, Any]:
    rows = await session.execute(_flows_and_users(), {"ids": list(flow_ids)})
    return {row.id: row for row in rows}


@cache
def _flows_and_users() -> sa.Executable:
    flows, users = FlowRecord.__table__, UserRecord.__table__
    return (
        sa.select(
            flows.c.id,
            flows.c.organism_yaml,
            flows.c.user_id,
            users.c.tier,
            users.c.limits,
            stored_bytes_of(flows.c.user_id).label("stored_bytes"),
            users.c.current_period_start,
            users.c.current_period_end,
        )
        .select_from(flows.outerjoin(users, users.c.id == flows.c.user_id))
        .where(flows.c.id.in_(sa.bindparam("ids", expanding=True)))
    )


async def _versions(session: AsyncSession, version_ids: Collection[UUID]) -> dict[UUID | None, str]:
    if not version_ids:
        return {}
    rows = await session.execute(
        sa.select(FlowVersionRecord.id, FlowVersionRecord.organism_yaml).where(FlowVersionRecord.id.in_(version_ids))
    )
    return {row.id: row.organism_yaml for row in rows}


async def _vars(session: AsyncSession, ids: Collection[UUID]) -> dict[UUID | None, str]:
    if not ids:
        return {}
    rows = await session.execute(sa.select(FlowVarsRecord.id, FlowVarsRecord.values).where(FlowVarsRecord.id.in_(ids)))
    return {row.id: row.values for row in rows}


async def release_orphaned_claims(session: AsyncSession, worker_id: str, known: Collection[LeaseKey]) -> int:
    """Release claims of this worker that are not `known`: the answer to their commit was lost. Returns their number."""
    ours = ExecutionRecord.worker_id == worker_id
    claimed = await session.execute(sa.select(ExecutionRecord.id, ExecutionRecord.lease).where(*is_claimed(), ours))
    orphaned = [row.id for row in claimed if (row.id, row.lease) not in known]
    if orphaned:
        unlocked = (
            sa.select(ExecutionRecord.id)
            .where(ExecutionRecord.id.in_(orphaned), *is_claimed(), ours)
            .with_for_update(skip_locked=True)
        )
        await session.execute(
            sa.update(ExecutionRecord)
            .where(ExecutionRecord.id.in_(unlocked))
            .values(lease=None, worker_id=None)
            .execution_options(synchronize_session=False)
        )
        wake_engine_after_commit(session, WakeReason.EXECUTION)
    return len(orphaned)


def _has_fresh_heartbeat(worker_id: Any, timeout: Any) -> sa.ColumnElement[bool]:
    """Whether the worker's stored heartbeat is younger than `timeout`, by the database's clock. PostgreSQL only."""
    worker = WorkerRecord.__table__.c
    return sa.exists().where(worker.worker_id == worker_id, worker.last_heartbeat_at >= database_now() - timeout)


def is_claimed() -> tuple[sa.ColumnElement[bool], ...]:
    return ExecutionRecord.status == ExecutionStatus.RUNNING, ExecutionRecord.lease.is_not(None)
