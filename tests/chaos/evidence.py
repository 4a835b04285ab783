"""What the rows, the audit and the recorder say of the executions, held against what clients were told."""

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
from tests.chaos.audit import Noted, read_audit
from tests.chaos.load import Answers
from tests.chaos.recorder import STEPS, Recorder
from tests.chaos.report import Report
from tests.chaos.waiting import until


@dataclass(frozen=True)
class Row:
    status: ExecutionStatus
    is_complete: bool
    error: str | None


@dataclass(frozen=True)
class Evidence:
    rows: dict[UUID, Row]
    answers: dict[tuple[UUID, str], tuple[StepStatus, str, int | None]]
    """By execution and step key: the status, the listener, and the call whose answer is stored."""
    noted: dict[str, list[Noted]]
    told: Counter[UUID]
    """Failure notices by execution."""


async def read_evidence(database: Database) -> Evidence:
    execution, step, notice = ExecutionRecord, ExecutionStepRecord, FailureNotificationRecord
    async with database.transaction(read_only=True) as session:
        executions = await session.execute(
            sa.select(execution.id, execution.status, execution.completed_at, execution.error_message)
        )
        rows = {each.id: Row(each.status, each.completed_at is not None, each.error_message) for each in executions}
        steps = await session.execute(
            sa.select(step.execution_id, step.key, step.status, step.listener, step.output_payload)
        )
        answers = {
            (one.execution_id, one.key): (one.status, one.listener, _call_of(one.output_payload)) for one in steps
        }
        noted: dict[str, list[Noted]] = defaultdict(list)
        for each in await read_audit(session):
            noted[each.kind].append(each)
        notices = await session.scalars(sa.select(notice.execution_id))
        told = Counter(execution_id for execution_id in notices if execution_id is not None)
    return Evidence(rows, answers, noted, told)


def _call_of(output: str | None) -> int | None:
    """Which call of the recorder gave a step's output, if one did."""
    match json.loads(output or "null"):
        case {"body": {"call": int(count)}}:
            return count
        case _:
            return None


async def until_all_ended(database: Database, seconds: float) -> float:
    """Wait until nothing runs any more; returns how long that took."""

    async def nothing_runs() -> bool:
        async with database.transaction(read_only=True) as session:
            running = sa.select(sa.func.count()).where(ExecutionRecord.status == ExecutionStatus.RUNNING)
            return (await session.scalar(running)) == 0

    return await until("all executions to end", nothing_runs, seconds)


def judge(report: Report, evidence: Evidence, answers: Answers, recorder: Recorder) -> None:
    """Every acknowledged execution ended once and as it had to, and no finished step was done again."""
    rows = evidence.rows
    ended = {each for each, row in rows.items() if row.status is not ExecutionStatus.RUNNING and row.is_complete}
    ends = Counter(each.execution_id for each in evidence.noted["end"])
    report.figure("accepted", len(rows))
    report.figure("acknowledged", len(answers.acknowledged))
    report.figure("ended", len(ended))
    report.none("lost", [each for each in answers.acknowledged if each not in rows])
    report.none("never ended", sorted(set(rows) - ended))
    report.none("duplicated ends", [each for each, count in ends.items() if count > 1])
    report.none("ended unseen", sorted(ended - set(ends)))
    report.none("changed after its end", evidence.noted["changed after its end"])
    report.none("ended otherwise than it had to", _wrong_ends(evidence, answers, recorder))
    report.none("without all of its steps", _incomplete(evidence))
    report.none("failures not told once", _untold(evidence))
    report.none("finished steps run again", [*_run_again(evidence, recorder), *evidence.noted["changed finished step"]])
    report.figure("interrupted steps repeated", sum(len(calls) - 1 for calls in recorder.repeated))
    report.figure("take-overs", len(evidence.noted["take-over"]))


def _wrong_ends(evidence: Evidence, answers: Answers, recorder: Recorder) -> list[str]:
    wrong = []
    for execution_id, number in answers.acknowledged.items():
        row = evidence.rows.get(execution_id)
        wanted = ExecutionStatus.ERROR if recorder.fails(number) else ExecutionStatus.SUCCESS
        if row is not None and row.status not in (wanted, ExecutionStatus.RUNNING):
            wrong.append(f"{execution_id} {row.status.value} {row.error or ''}")
    return wrong


def _incomplete(evidence: Evidence) -> list[UUID]:
    """Successes that lack a step, or have one twice."""
    done: dict[UUID, list[str]] = defaultdict(list)
    for (execution_id, _), (status, listener, _) in evidence.answers.items():
        if status is StepStatus.SUCCESS:
            done[execution_id].append(listener)
    successes = [each for each, row in evidence.rows.items() if row.status is ExecutionStatus.SUCCESS]
    return [each for each in successes if sorted(done[each]) != sorted(STEPS)]


def _untold(evidence: Evidence) -> list[UUID]:
    failed = {each for each, row in evidence.rows.items() if row.status is ExecutionStatus.ERROR}
    return [each for each in failed | set(evidence.told) if each not in failed or evidence.told[each] != 1]


def _run_again(evidence: Evidence, recorder: Recorder) -> list[str]:
    """Steps that hold the answer of one call although another was made later.

    A worker that calls again has seen no stored answer, and from then on only its own may be stored: the stored one
    was there before, or came from a worker that had lost the execution.
    """
    again = []
    for calls in recorder.repeated:
        status, _, stored = evidence.answers.get((calls[0].execution_id, calls[0].step_key), (None, "", None))
        if status is StepStatus.SUCCESS and stored != calls[-1].count:
            again.append(f"{calls[0].key} holds call {stored} of {[call.count for call in calls]}")
    return again


def longest_interruption(recorder: Recorder) -> float:
    """Seconds from the moment in which a step's caller got its answer, or was gone, to the next call of this step."""
    waits = [
        later.began - earlier.ended
        for calls in recorder.repeated
        for earlier, later in pairwise(calls)
        if earlier.ended is not None
    ]
    return max(waits, default=0.0)


def longest_pause(recorder: Recorder, moments: list[float]) -> float:
    """Seconds from one of these moments to the next answered call of anybody, at most."""
    answered = sorted(call.answered for call in recorder.all_calls if call.answered is not None)
    pauses = [min((at - moment for at in answered if at >= moment), default=0.0) for moment in moments]
    return max(pauses, default=0.0)
