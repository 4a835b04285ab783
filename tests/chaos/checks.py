"""Checks the rows, the audit and the recorded requests against the responses that clients received."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    ExecutionStepRecord,
    FailureNotificationRecord,
    StepStatus,
)
from tests.chaos.audit import AuditEvent, read_audit
from tests.chaos.load import Responses
from tests.chaos.recorder import STEPS, Recorder
from tests.chaos.report import Report
from tests.chaos.waiting import wait_until


@dataclass(frozen=True)
class Row:
    status: ExecutionStatus
    is_complete: bool
    error: str | None


@dataclass(frozen=True)
class Observations:
    rows: dict[UUID, Row]
    steps: dict[tuple[UUID, str], tuple[StepStatus, str, int | None]]
    """By execution and step key: the status, the listener, and the call whose response is stored."""
    audit: dict[str, list[AuditEvent]]
    notifications: Counter[UUID]
    """Failure notifications by execution."""


async def read_observations(database: Database) -> Observations:
    execution, step, notice = ExecutionRecord, ExecutionStepRecord, FailureNotificationRecord
    async with database.transaction(read_only=True) as session:
        executions = await session.execute(
            sa.select(execution.id, execution.status, execution.completed_at, execution.error_message)
        )
        rows = {each.id: Row(each.status, each.completed_at is not None, each.error_message) for each in executions}
        steps = await session.execute(
            sa.select(step.execution_id, step.key, step.status, step.listener, step.output_payload)
        )
        steps_by_key = {
            (row.execution_id, row.key): (row.status, row.listener, _parse_call(row.output_payload)) for row in steps
        }
        audit: dict[str, list[AuditEvent]] = defaultdict(list)
        for each in await read_audit(session):
            audit[each.kind].append(each)
        notices = await session.scalars(sa.select(notice.execution_id))
        notifications = Counter(execution_id for execution_id in notices if execution_id is not None)
    return Observations(rows, steps_by_key, audit, notifications)


def _parse_call(output: str | None) -> int | None:
    """Return the number of the recorder's call whose response is the output, if any."""
    match json.loads(output or "null"):
        case {"body": {"call": int(count)}}:
            return count
        case _:
            return None


async def wait_for_all_ends(database: Database, seconds: float) -> float:
    """Wait until no execution is running; returns the seconds."""

    async def none_is_running() -> bool:
        async with database.transaction(read_only=True) as session:
            running = sa.select(sa.func.count()).where(ExecutionRecord.status == ExecutionStatus.RUNNING)
            return (await session.scalar(running)) == 0

    return await wait_until("all executions to end", none_is_running, seconds)


def check_invariants(report: Report, observed: Observations, responses: Responses, recorder: Recorder) -> None:
    """Check that every acknowledged execution ended once with the right result, and no completed step ran again."""
    rows = observed.rows
    ended = {each for each, row in rows.items() if row.status is not ExecutionStatus.RUNNING and row.is_complete}
    ends = Counter(each.execution_id for each in observed.audit["end"])
    report.record("accepted", len(rows))
    report.record("acknowledged", len(responses.acknowledged))
    report.record("ended", len(ended))
    report.expect_none("lost", [each for each in responses.acknowledged if each not in rows])
    report.expect_none("never ended", sorted(set(rows) - ended))
    report.expect_none("ended twice", [each for each, count in ends.items() if count > 1])
    report.expect_none("end not in the audit", sorted(ended - set(ends)))
    report.expect_none("changed after the end", observed.audit["changed after the end"])
    report.expect_none("ended with the wrong status", _wrong_ends(observed, responses, recorder))
    report.expect_none("success without all steps", _incomplete(observed))
    report.expect_none("failures without exactly one notification", _wrong_notifications(observed))
    report.expect_none(
        "completed steps that ran again", [*_run_again(observed, recorder), *observed.audit["changed completed step"]]
    )
    report.record("interrupted steps repeated", sum(len(calls) - 1 for calls in recorder.repeated))
    report.record("recoveries", len(observed.audit["recovery"]))


def _wrong_ends(observed: Observations, responses: Responses, recorder: Recorder) -> list[str]:
    wrong = []
    for execution_id, number in responses.acknowledged.items():
        row = observed.rows.get(execution_id)
        expected = ExecutionStatus.ERROR if recorder.fails(number) else ExecutionStatus.SUCCESS
        if row is not None and row.status not in (expected, ExecutionStatus.RUNNING):
            wrong.append(f"{execution_id} {row.status.value} {row.error or ''}")
    return wrong


def _incomplete(observed: Observations) -> list[UUID]:
    """Return successful executions with missing or duplicate steps."""
    done: dict[UUID, list[str]] = defaultdict(list)
    for (execution_id, _), (status, listener, _) in observed.steps.items():
        if status is StepStatus.SUCCESS:
            done[execution_id].append(listener)
    successes = [each for each, row in observed.rows.items() if row.status is ExecutionStatus.SUCCESS]
    return [each for each in successes if sorted(done[each]) != sorted(STEPS)]


def _wrong_notifications(observed: Observations) -> list[UUID]:
    failed = {each for each, row in observed.rows.items() if row.status is ExecutionStatus.ERROR}
    return [
        each for each in failed | set(observed.notifications) if each not in failed or observed.notifications[each] != 1
    ]


def _run_again(observed: Observations, recorder: Recorder) -> list[str]:
    """Return steps that store the response of a call although a later call was made.

    A worker repeats a call only if no response is stored. If an earlier response is stored nevertheless, the worker
    ignored it, or a worker that had lost the execution stored it.
    """
    repeated = []
    for calls in recorder.repeated:
        status, _, stored = observed.steps.get((calls[0].execution_id, calls[0].step_key), (None, "", None))
        if status is StepStatus.SUCCESS and stored != calls[-1].count:
            owners = [each.detail for each in observed.audit["claim"] if each.execution_id == calls[0].execution_id]
            described = ", ".join(map(str, calls))
            repeated.append(f"{calls[0].path} of {calls[0].key} stores call {stored} of {described}; claims: {owners}")
    return repeated


def longest_interruption(recorder: Recorder) -> float:
    """Return the maximum seconds from the end of a call to the next call of the same step."""
    waits = [
        later.started - earlier.ended
        for calls in recorder.repeated
        for earlier, later in pairwise(calls)
        if earlier.ended is not None
    ]
    return max(waits, default=0.0)


def longest_pause(recorder: Recorder, moments: list[float]) -> float:
    """Return the maximum seconds from one of these moments to the next answered call of any step."""
    answered = sorted(call.answered for call in recorder.all_calls if call.answered is not None)
    pauses = [min((at - moment for at in answered if at >= moment), default=0.0) for moment in moments]
    return max(pauses, default=0.0)
