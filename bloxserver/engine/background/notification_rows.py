"""Notices of executions that failed: rows that are written with the end, and delivered from there."""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Literal, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clients.mail import compose
from bloxserver.clients.mail_headers import read_mailbox
from bloxserver.clock import UtcTime, now
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import ExecutionStatus, NotificationChannel, TriggerType
from bloxserver.models.tables import ExecutionRecord, FailureNotificationRecord, FlowRecord, FlowVersionRecord

MAX_ERROR = 2_000
"""Characters: however they are escaped, an event stays below 20 kB."""


class DueNotification(NamedTuple):
    id: UUID
    due_at: datetime


async def read_due_notifications(session: AsyncSession, moment: datetime, limit: int) -> list[DueNotification]:
    """Notices that are due, users in rotation: one whose server is slow does not keep the others waiting."""
    place = sa.func.row_number().over(partition_by=FlowRecord.user_id, order_by=FailureNotificationRecord.due_at)
    due = (
        sa.select(FailureNotificationRecord.id, FailureNotificationRecord.due_at, place.label("place"))
        .join(ExecutionRecord, ExecutionRecord.id == FailureNotificationRecord.execution_id)
        .join(FlowRecord, FlowRecord.id == ExecutionRecord.flow_id)
        .where(FailureNotificationRecord.due_at <= moment)
        .subquery()
    )
    rows = await session.execute(sa.select(due.c.id, due.c.due_at).order_by(due.c.place, due.c.due_at).limit(limit))
    return [DueNotification(*row) for row in rows]


class ClaimedNotification(NamedTuple):
    """A notice that one process is about to send; should it not come to an end, the notice is due again `until`."""

    id: UUID
    execution_id: UUID
    channel: NotificationChannel
    attempts: int
    """This one included."""
    until: datetime


async def claim_notification(
    session: AsyncSession, due: DueNotification, until: datetime
) -> ClaimedNotification | None:
    """Begin an attempt; None where another process has done so since `due` was read."""
    claimed = await session.execute(
        sa.update(FailureNotificationRecord)
        .where(FailureNotificationRecord.id == due.id, FailureNotificationRecord.due_at == due.due_at)
        .values(due_at=until, attempts=FailureNotificationRecord.attempts + 1)
        .returning(
            FailureNotificationRecord.execution_id,
            FailureNotificationRecord.channel,
            FailureNotificationRecord.attempts,
        )
    )
    row = claimed.first()
    return None if row is None else ClaimedNotification(due.id, *row, until)


async def end_attempt(
    session: AsyncSession, notice: ClaimedNotification, *, error: str | None = None, due_at: datetime | None = None
) -> None:
    """Without an error the notice is delivered; with one it is due again, or given up where `due_at` is null."""
    await session.execute(
        sa.update(FailureNotificationRecord)
        .where(FailureNotificationRecord.id == notice.id, FailureNotificationRecord.due_at == notice.until)
        .values(due_at=due_at, error_message=error, delivered_at=now() if error is None else None)
    )


class Failure(NamedTuple):
    """A failed execution, with what its notice needs."""

    execution_id: UUID
    flow_id: UUID
    flow_name: str
    status: ExecutionStatus
    error_message: str | None
    started_at: datetime
    completed_at: datetime | None
    trigger_type: TriggerType
    flow_version: int | None
    depth: int
    user_id: UUID
    organism_yaml: str


async def read_failure(session: AsyncSession, execution_id: UUID) -> Failure | None:
    """The execution with the definition that it ran; None where it is gone."""
    rows = await session.execute(
        sa.select(
            ExecutionRecord.id,
            ExecutionRecord.flow_id,
            FlowRecord.name,
            ExecutionRecord.status,
            ExecutionRecord.error_message,
            ExecutionRecord.started_at,
            ExecutionRecord.completed_at,
            ExecutionRecord.trigger_type,
            ExecutionRecord.flow_version,
            ExecutionRecord.depth,
            FlowRecord.user_id,
            sa.func.coalesce(FlowVersionRecord.organism_yaml, FlowRecord.organism_yaml),
        )
        .join(FlowRecord, FlowRecord.id == ExecutionRecord.flow_id)
        .outerjoin(FlowVersionRecord, FlowVersionRecord.id == ExecutionRecord.flow_version_id)
        .where(ExecutionRecord.id == execution_id)
    )
    return next((Failure(*tuple(row)) for row in rows), None)


class FailedExecution(CamelModel):
    execution_id: UUID
    flow_id: UUID
    flow_name: str
    status: ExecutionStatus
    error_message: str
    started_at: UtcTime
    completed_at: UtcTime
    trigger_type: TriggerType
    flow_version: int | None


class FailureEvent(CamelModel):
    """What a server is told, in the form that Standard Webhooks recommends."""

    type: Literal["execution.failed"] = "execution.failed"
    timestamp: UtcTime
    data: FailedExecution


def event_of(failure: Failure) -> bytes:
    """The body of the request that tells of the failure: JSON below 20 kB, the same for every attempt."""
    ended = _ended(failure)
    values = failure._asdict() | {"error_message": _reason(failure), "completed_at": ended}
    event = FailureEvent(timestamp=ended, data=FailedExecution.model_validate(values))
    return event.model_dump_json(by_alias=True).encode()


def mail_of(failure: Failure, notification_id: UUID, *, sender: str, address: str) -> EmailMessage:
    """The mail that tells of the failure, the same for every attempt; raises `ValueError` for what is no address."""
    name = " ".join("".join(letter if letter.isprintable() else " " for letter in failure.flow_name).split())
    version = "the current version" if failure.flow_version is None else f"version {failure.flow_version}"
    text = (
        f'The flow "{name}" {_verb(failure)} at {_time(_ended(failure))}.\n\n'
        f"What happened:\n{_reason(failure)}\n\n"
        f"Execution: {failure.execution_id}\n"
        f"Flow: {failure.flow_id}, {version}\n"
        f"Started: {_time(failure.started_at)}, trigger: {failure.trigger_type.value}\n"
    )
    return compose(
        key=f"failure notice {notification_id}",
        moment=_ended(failure),
        sender=sender,
        to=[str(read_mailbox(address))],  # one, although `compose` accepts lists
        subject=f'Flow "{name}" {_verb(failure)}',
        text=text,
    )


def _verb(failure: Failure) -> str:
    return "ran out of time" if failure.status is ExecutionStatus.TIMEOUT else "failed"


def _reason(failure: Failure) -> str:
    reason = failure.error_message or "no reason was given"
    return reason if len(reason) <= MAX_ERROR else reason[: MAX_ERROR - 1] + "…"


def _ended(failure: Failure) -> datetime:
    return failure.completed_at or failure.started_at


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
