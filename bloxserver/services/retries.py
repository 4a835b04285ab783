"""Retries of executions, from the start or from the failed steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest
from bloxserver.ids import new_id
from bloxserver.item_keys import index_in_key
from bloxserver.models.enums import NOT_NEEDED, AuditAction, ExecutionStatus, FlowStatus, StepStatus, TriggerType
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord, FlowRecord, ResumptionRecord
from bloxserver.plans import Plan
from bloxserver.queries.executions import read_execution, require_execution
from bloxserver.queries.flows import read_flow
from bloxserver.queries.steps import StepLink, read_step_links
from bloxserver.queries.usage import Period, read_stored_bytes
from bloxserver.services import audit
from bloxserver.services.executions import Input, accept
from bloxserver.services.usage import count_run, require_storage
from bloxserver.services.versions import current_version

ROWS_PER_INSERT = 500
CONTINUED: Mapping[str, Any] = {
    "status": StepStatus.RUNNING,
    "copied": False,
    "attempt": 1,
    "interruptions": 0,
    **dict.fromkeys(("output_payload", "error_message", "error_code", "completed_at", "duration_ms", "warnings")),
}
"""The columns of a step that is continued."""
FAILED = (ExecutionStatus.ERROR, ExecutionStatus.TIMEOUT, ExecutionStatus.CANCELLED)


class RetryFrom(StrEnum):
    START = "start"
    FAILED = "failed"
    """Finished steps are not repeated."""


class RetryVersion(StrEnum):
    SAME = "same"
    LATEST = "latest"
    """The flow's current definition, even if it was not started since it changed."""


async def retry_execution(
    session: AsyncSession,
    user_id: UUID,
    plan: Plan,
    period: Period,
    flow_id: UUID,
    execution_id: UUID,
    begin: RetryFrom,
    version: RetryVersion,
) -> ExecutionRecord:
    """Accept an execution with the input of an ended one, and count it as a run.

    Raises `NotFound`, `Forbidden` at the limit, and `BadRequest`: `flow_not_running`, `execution_running`,
    `nothing_failed`.
    """
    await require_execution(session, user_id, flow_id, execution_id)
    flow = await read_flow(session, user_id, flow_id, lock=True)
    original = await read_execution(session, user_id, flow_id, execution_id, lock=True)
    if flow.status is not FlowStatus.RUNNING:
        raise BadRequest("flow_not_running", f"Flow must be running to execute (current: {flow.status.value})")
    if original.status is ExecutionStatus.RUNNING:
        raise BadRequest("execution_running", "Cannot retry execution in running state")
    if begin is RetryFrom.FAILED and original.status not in FAILED:
        raise BadRequest("nothing_failed", f"Nothing failed: the execution is in {original.status.value} state")
    require_storage(plan, await read_stored_bytes(session, user_id))
    await count_run(session, user_id, plan, period, now())
    version_id, number = await _version(session, plan, flow, original, version)
    execution = await accept(
        session,
        flow_id=flow_id,
        flow_version_id=version_id,
        flow_version=number,
        trigger_type=TriggerType.MANUAL,
        target=original.target,
        given=Input(original.input_payload, original.input_encoding),
        retry_of=original.id,
        trigger_context=original.trigger_context,
    )
    if begin is RetryFrom.FAILED:
        await _copy_finished_steps(session, original.id, execution.id)
    after = {"executionId": str(execution.id)}
    await audit.record(session, AuditAction.EXECUTION_RETRIED, user_id, execution_id, flow_id=flow_id, after=after)
    return execution


async def _version(
    session: AsyncSession, plan: Plan, flow: FlowRecord, original: ExecutionRecord, wanted: RetryVersion
) -> tuple[UUID | None, int | None]:
    if wanted is RetryVersion.LATEST:
        latest = await current_version(session, flow, plan)
        return latest.id, latest.number
    if original.flow_version_id is None:
        return flow.active_version_id, flow.active_version
    return original.flow_version_id, original.flow_version


class Copy(NamedTuple):
    """A step that is copied to another execution, with its id and key there."""

    original_id: UUID
    new_id: UUID
    new_parent_id: UUID | None
    new_key: str
    new_sequence: int
    is_continued: bool
    """Whether the new execution continues the step: a loop that has finished items."""


def copies_of(steps: Sequence[StepLink]) -> list[Copy]:
    """The steps that need not be repeated: finished steps whose ancestors are all finished.

    A failed step is finished if its error was handled: by a peer, by a join, or by the step that called it. A join
    handles its message after all steps before it have ended, so it is a descendant of finished steps only. Steps whose
    answers a join did not need are finished too. A loop that is not finished is continued with its successful items.
    """
    children: dict[UUID | None, list[StepLink]] = defaultdict(list)
    for step in steps:
        children[step.parent_id].append(step)

    def is_finished(step: StepLink) -> bool:
        if step.status is StepStatus.CANCELLED:
            return step.error_code == NOT_NEEDED
        if step.status is not StepStatus.ERROR:
            return step.status is StepStatus.SUCCESS
        return _is_call(step) or bool(step.routed_to) or not all(_is_call(child) for child in children[step.id])

    def has_items(step: StepLink) -> bool:
        return any(_is_finished_item(child) for child in children[step.id])

    new_ids: dict[UUID | None, UUID | None] = {None: None}
    continued: set[UUID | None] = set()
    reached: list[UUID | None] = [None]
    while reached:
        parent = reached.pop()
        next_steps = [step for step in children[parent] if step.id not in new_ids]
        if parent in continued:
            taken = [step for step in next_steps if _is_finished_item(step)]
        else:
            begun = {step.id for step in next_steps if not is_finished(step) and has_items(step)}
            taken = [step for step in next_steps if step.id in begun or is_finished(step)]
            continued |= begun
        new_ids |= {step.id: new_id() for step in taken}
        reached += [step.id for step in taken]
    copied = [step for step in steps if step.id in new_ids]
    return [_copy(step, new_ids, sequence, step.id in continued) for sequence, step in enumerate(copied, 1)]


def _is_finished_item(step: StepLink) -> bool:
    return step.status is StepStatus.SUCCESS and index_in_key(step.key) is not None


def _is_call(step: StepLink) -> bool:
    """Whether its parent called it, as a tool or for an item. The key then continues after the listener's name."""
    return step.parent_id is not None and step.key.startswith(f"{step.parent_id}:{step.listener}:")


def _copy(step: StepLink, new_ids: dict[UUID | None, UUID | None], sequence: int, is_continued: bool) -> Copy:
    """The key of a joined message does not name its parent, and stays as it is."""
    parent_id, named = new_ids[step.parent_id], str(step.parent_id or "")
    key = f"{parent_id or ''}{step.key.removeprefix(named)}" if step.key.startswith(named) else step.key
    id = new_ids[step.id]
    assert id is not None  # noqa: S101
    return Copy(step.id, id, parent_id, key, sequence, is_continued)


async def _copy_finished_steps(session: AsyncSession, from_id: UUID, to_id: UUID) -> None:
    """Copy the steps inside the database: there may be thousands, with large payloads."""
    links = await read_step_links(session, from_id)
    copies = copies_of(links)
    for is_continued in (False, True):
        insert = _insert_copy(to_id, CONTINUED if is_continued else {})
        rows = [copy._asdict() for copy in copies if copy.is_continued is is_continued]
        for begin in range(0, len(rows), ROWS_PER_INSERT):
            await session.execute(insert, rows[begin : begin + ROWS_PER_INSERT])
    kept = {copy.original_id for copy in copies}
    repeated = {step.listener for step in links if step.status is StepStatus.SUCCESS and step.id not in kept}
    await _copy_resumptions(session, from_id, to_id, repeated)


async def _copy_resumptions(session: AsyncSession, from_id: UUID, to_id: UUID, repeated: Collection[str]) -> None:
    """Copy the calls that were received, except for those of listeners that ask again."""
    columns = ResumptionRecord.__table__.c
    values = [sa.literal(to_id, columns.execution_id.type), columns.listener, columns.payload, columns.answered_by]
    original = sa.select(*values).where(columns.execution_id == from_id, columns.listener.not_in(repeated))
    names = ["execution_id", "listener", "payload", "answered_by"]
    await session.execute(sa.insert(ResumptionRecord).from_select(names, original))


def _insert_copy(execution_id: UUID, changes: Mapping[str, Any]) -> sa.Insert:
    """Insert copies with the values of `Copy` and these changes. All other columns are unchanged."""
    table = ExecutionStepRecord.metadata.tables[ExecutionStepRecord.__tablename__]
    columns = table.c
    values: dict[str, sa.ColumnElement[Any]] = {
        "id": sa.bindparam("new_id", type_=columns.id.type),
        "parent_id": sa.bindparam("new_parent_id", type_=columns.parent_id.type),
        "key": sa.bindparam("new_key", type_=columns.key.type),
        "sequence": sa.bindparam("new_sequence", type_=columns.sequence.type),
        "execution_id": sa.literal(execution_id, columns.execution_id.type),
        "copied": sa.true(),
        "input_tokens": sa.literal(0),
        "output_tokens": sa.literal(0),
    }
    values |= {name: sa.literal(value, columns[name].type) for name, value in changes.items()}
    values = {column.name: values.get(column.name, column) for column in columns}
    original = sa.select(*values.values()).where(columns.id == sa.bindparam("original_id"))
    return sa.insert(table).from_select(list(values), original, include_defaults=False)
