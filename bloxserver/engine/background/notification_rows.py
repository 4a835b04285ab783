"""Database rows and contents of notifications: of failed executions, disabled schedules and budgets."""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Literal, NamedTuple, TypeAlias
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.base import DAILY_BUDGET_USED
from bloxserver.clients.mail import compose
from bloxserver.clients.mail_headers import read_mailbox
from bloxserver.clock import UtcTime, now
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import ExecutionStatus, NotificationChannel, TriggerType
from bloxserver.models.tables import (
    ExecutionRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVersionRecord,
    TriggerRecord,
)

MAX_ERROR = 2_000
"""In characters. Even if JSON escapes all of them, an event is smaller than 20 kB."""


FLOW_IDS = (ExecutionRecord.flow_id, TriggerRecord.flow_id, FailureNotificationRecord.flow_id)
"""One of them is the flow of a notification."""


class DueNotification(NamedTuple):
    id: UUID
    due_at: datetime


async def read_due_notifications(session: AsyncSession, moment: datetime, limit: int) -> list[DueNotification]:
    """Notifications that are due, users in rotation, so that one user's slow server does not delay the others."""
    place = sa.func.row_number().over(partition_by=FlowRecord.user_id, order_by=FailureNotificationRecord.due_at)
    due = (
        sa.select(FailureNotificationRecord.id, FailureNotificationRecord.due_at, place.label("place"))
        .outerjoin(ExecutionRecord, ExecutionRecord.id == FailureNotificationRecord.execution_id)
        .outerjoin(TriggerRecord, TriggerRecord.id == FailureNotificationRecord.trigger_id)
        .join(FlowRecord, FlowRecord.id == sa.func.coalesce(*FLOW_IDS))
        .where(
            FailureNotificationRecord.due_at <= moment,
            FlowRecord.deleted_at.is_(None),
            TriggerRecord.deleted_at.is_(None),
        )
        .subquery()
    )
    rows = await session.execute(sa.select(due.c.id, due.c.due_at).order_by(due.c.place, due.c.due_at).limit(limit))
    return [DueNotification(*row) for row in rows]


class ClaimedNotification(NamedTuple):
    """A notification that one process sends. If the process stops, it is due again at `until`."""

    id: UUID
    execution_id: UUID | None
    trigger_id: UUID | None
    flow_id: UUID | None
    channel: NotificationChannel
    attempts: int
    """The number of attempts, including this one."""
    until: datetime


async def claim_notification(
    session: AsyncSession, due: DueNotification, until: datetime
) -> ClaimedNotification | None:
    """Begin an attempt; None if another process has begun one after `due` was read."""
    notification = FailureNotificationRecord
    claimed = await session.execute(
        sa.update(notification)
        .where(notification.id == due.id, notification.due_at == due.due_at)
        .values(due_at=until, attempts=notification.attempts + 1)
        .returning(
            notification.execution_id,
            notification.trigger_id,
            notification.flow_id,
            notification.channel,
            notification.attempts,
        )
    )
    row = claimed.first()
    return None if row is None else ClaimedNotification(due.id, *row, until)


async def end_attempt(
    session: AsyncSession,
    notification: ClaimedNotification,
    *,
    error: str | None = None,
    due_at: datetime | None = None,
) -> None:
    """Record the result of an attempt.

    If `error` is None, the attempt succeeded. Otherwise the next attempt is at `due_at`. If `due_at` is also None, the
    notification failed.
    """
    await session.execute(
        sa.update(FailureNotificationRecord)
        .where(FailureNotificationRecord.id == notification.id, FailureNotificationRecord.due_at == notification.until)
        .values(due_at=due_at, error_message=error, delivered_at=now() if error is None else None)
    )


class Failure(NamedTuple):
    """A failed execution, with the data that its notification needs."""

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
    """The execution with the definition that it ran; None if it was deleted."""
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
        .where(ExecutionRecord.id == execution_id, FlowRecord.deleted_at.is_(None))
    )
    return next((Failure(*tuple(row)) for row in rows), None)


class Notice(NamedTuple):
    """What a notification without an execution is about: a disabled schedule, or a budget of language models."""

    trigger_id: UUID | None
    """None if it is about a budget."""
    trigger_name: str | None
    flow_id: UUID
    flow_name: str
    subject: str | None
    reason: str | None
    created_at: datetime
    user_id: UUID
    organism_yaml: str

    @property
    def depth(self) -> int:
        """The call depth: 0, since the notification does not belong to one execution."""
        return 0

    @property
    def is_budget_used(self) -> bool:
        """Whether calls were refused, and not only most of the budget used."""
        return (self.subject or "").startswith(DAILY_BUDGET_USED)


async def read_notice(session: AsyncSession, notification_id: UUID) -> Notice | None:
    """The notice with the definition that its flow runs; None if the flow or the schedule was deleted."""
    rows = await session.execute(
        sa.select(
            TriggerRecord.id,
            TriggerRecord.name,
            FlowRecord.id,
            FlowRecord.name,
            FailureNotificationRecord.subject,
            FailureNotificationRecord.reason,
            FailureNotificationRecord.created_at,
            FlowRecord.user_id,
            sa.func.coalesce(FlowVersionRecord.organism_yaml, FlowRecord.organism_yaml),
        )
        .select_from(FailureNotificationRecord)
        .outerjoin(TriggerRecord, TriggerRecord.id == FailureNotificationRecord.trigger_id)
        .join(FlowRecord, FlowRecord.id == sa.func.coalesce(TriggerRecord.flow_id, FailureNotificationRecord.flow_id))
        .outerjoin(FlowVersionRecord, FlowVersionRecord.id == FlowRecord.active_version_id)
        .where(
            FailureNotificationRecord.id == notification_id,
            TriggerRecord.deleted_at.is_(None),
            FlowRecord.deleted_at.is_(None),
        )
    )
    return next((Notice(*row) for row in rows), None)


Cause: TypeAlias = Failure | Notice


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
    """The body of a notification of a failed execution, in the form that Standard Webhooks recommends."""

    type: Literal["execution.failed"] = "execution.failed"
    timestamp: UtcTime
    data: FailedExecution


class DisabledTrigger(CamelModel):
    trigger_id: UUID
    trigger_name: str
    flow_id: UUID
    flow_name: str
    reason: str


class DisabledEvent(CamelModel):
    """The body of a notification of a disabled schedule."""

    type: Literal["schedule.disabled"] = "schedule.disabled"
    timestamp: UtcTime
    data: DisabledTrigger


class UsedBudget(CamelModel):
    flow_id: UUID
    flow_name: str
    message: str


class BudgetEvent(CamelModel):
    """The body of a notification of a budget that is almost used, or of one that stops calls."""

    type: Literal["budget.warning", "budget.exceeded"]
    timestamp: UtcTime
    data: UsedBudget


def event_of(cause: Cause) -> bytes:
    """The body of the request to the recipient: JSON below 20 kB, the same for every attempt."""
    event: FailureEvent | DisabledEvent | BudgetEvent
    if isinstance(cause, Notice):
        values = cause._asdict() | {"reason": _reason(cause.reason), "message": _reason(cause.reason)}
        if cause.trigger_id is None:
            kind: Literal["budget.exceeded", "budget.warning"]
            kind = "budget.exceeded" if cause.is_budget_used else "budget.warning"
            event = BudgetEvent(type=kind, timestamp=cause.created_at, data=UsedBudget.model_validate(values))
        else:
            event = DisabledEvent(timestamp=cause.created_at, data=DisabledTrigger.model_validate(values))
    else:
        ended = _ended(cause)
        values = cause._asdict() | {"error_message": _reason(cause.error_message), "completed_at": ended}
        event = FailureEvent(timestamp=ended, data=FailedExecution.model_validate(values))
    return event.model_dump_json(by_alias=True).encode()


def mail_of(cause: Cause, notification_id: UUID, *, sender: str, address: str) -> EmailMessage:
    """The mail to the recipient, the same for every attempt. Raises `ValueError` for an invalid address."""
    name = _one_line(cause.flow_name)
    if isinstance(cause, Notice):
        moment, (subject, text) = cause.created_at, _disabled(cause) if cause.trigger_id else _used(cause)
    else:
        moment, subject, text = _ended(cause), f'Flow "{name}" {_verb(cause)}', _failure_text(cause)
    return compose(
        key=f"failure notice {notification_id}",
        moment=moment,
        sender=sender,
        to=[str(read_mailbox(address))],  # a single mailbox, although `compose` accepts lists
        subject=subject,
        text=text,
    )


def _failure_text(failure: Failure) -> str:
    version = "the current version" if failure.flow_version is None else f"version {failure.flow_version}"
    return (
        f'The flow "{_one_line(failure.flow_name)}" {_verb(failure)} at {_time(_ended(failure))}.\n\n'
        f"What happened:\n{_reason(failure.error_message)}\n\n"
        f"Execution: {failure.execution_id}\n"
        f"Flow: {failure.flow_id}, {version}\n"
        f"Started: {_time(failure.started_at)}, trigger: {failure.trigger_type.value}\n"
    )


def _used(notice: Notice) -> tuple[str, str]:
    """The subject and the text."""
    name = _one_line(notice.flow_name)
    subject = (
        f'The daily budget of flow "{name}" is used'
        if notice.is_budget_used
        else (f'A budget of flow "{name}" is almost used')
    )
    return subject, f"{_reason(notice.reason)}\n\nFlow: {notice.flow_id}\n"


def _disabled(notice: Notice) -> tuple[str, str]:
    """The subject and the text."""
    flow, trigger = _one_line(notice.flow_name), _one_line(notice.trigger_name or "")
    text = (
        f'The schedule "{trigger}" of the flow "{flow}" was disabled at {_time(notice.created_at)}. It will not fire '
        f"until you correct its config and enable it.\n\n"
        f"Reason:\n{_reason(notice.reason)}\n\n"
        f"Trigger: {notice.trigger_id}\n"
        f"Flow: {notice.flow_id}\n"
    )
    return f'A schedule of flow "{flow}" was disabled', text


def _one_line(name: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())


def _verb(failure: Failure) -> str:
    return "ran out of time" if failure.status is ExecutionStatus.TIMEOUT else "failed"


def _reason(text: str | None) -> str:
    reason = text or "no reason was given"
    return reason if len(reason) <= MAX_ERROR else reason[: MAX_ERROR - 1] + "…"


def _ended(failure: Failure) -> datetime:
    return failure.completed_at or failure.started_at


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
