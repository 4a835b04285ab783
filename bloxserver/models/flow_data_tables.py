"""Tables of data of a flow and its executions: steps, key-value storage, notifications, deliveries and totals."""

from __future__ import annotations

import uuid
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from bloxserver.clock import now
from bloxserver.models.base import Base, Counter, CreatedAt, Id, UpdatedAt, partial_index
from bloxserver.models.enums import NotificationChannel, StepStatus
from bloxserver.models.execution_totals import create_triggers
from bloxserver.models.maintained import create_with
from bloxserver.models.types import database_now, enum_text


class ExecutionStepRecord(Base):
    """One handled message; the row is both checkpoint and log. A step with status `success` never runs again."""

    __tablename__ = "execution_steps"
    __table_args__ = (sa.UniqueConstraint("execution_id", "key"), sa.Index(None, "execution_id", "sequence"))

    id: Mapped[Id]
    execution_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("executions.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(sa.String(255))
    """Identifies the message within the execution by the sender's step and the listener; stable across attempts."""
    sequence: Mapped[int] = mapped_column(default=0, server_default="0")
    """The number of the last change of this step, counted over all steps of the execution."""
    parent_id: Mapped[uuid.UUID | None]
    """The step whose output is this message; null for the entry."""
    listener: Mapped[str] = mapped_column(sa.String(255))
    handler: Mapped[str | None] = mapped_column(sa.String(255))
    status: Mapped[StepStatus] = mapped_column(
        enum_text(StepStatus), default=StepStatus.SUCCESS, server_default=StepStatus.SUCCESS.value
    )
    attempt: Mapped[int] = mapped_column(default=1, server_default="1")
    """Tries so far, including interrupted ones."""
    interruptions: Mapped[int] = mapped_column(default=0, server_default="0")
    """Tries that were interrupted, for example by a crash of the worker. They do not count as retries."""
    input_payload: Mapped[str | None] = mapped_column(sa.Text)
    output_payload: Mapped[str | None] = mapped_column(sa.Text)
    error_message: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[str | None] = mapped_column(sa.String(64))
    started_at: Mapped[datetime] = mapped_column(default=now, server_default=database_now())
    completed_at: Mapped[datetime | None]
    """When the step ended. For a waiting step, when it continues."""
    duration_ms: Mapped[int | None] = mapped_column(sa.BigInteger)
    input_tokens: Mapped[Counter]
    output_tokens: Mapped[Counter]
    routed_to: Mapped[list[str] | None] = mapped_column(sa.JSON(none_as_null=True))
    """The listeners that the block selected for its output; null if the definition selects them."""
    called_id: Mapped[uuid.UUID | None]
    """The called execution, whose result is the output."""
    warnings: Mapped[list[dict[str, str]] | None] = mapped_column(sa.JSON(none_as_null=True))
    """Problems that did not end the step: objects with a code and a message."""
    copied: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """Copied from the execution that is retried."""
    state: Mapped[str | None] = mapped_column(sa.Text)
    """The conversation of an agent as JSON, with which it continues after an interruption."""


class ResumptionRecord(Base):
    """A call of the URL of a listener that waits for it in an execution. A row is a call that was accepted."""

    __tablename__ = "resumptions"

    execution_id: Mapped[uuid.UUID] = mapped_column(
        sa.ForeignKey("executions.id", ondelete="CASCADE"), primary_key=True
    )
    listener: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    payload: Mapped[str | None] = mapped_column(sa.Text)
    """The body, as the input of an execution is stored."""
    answered_by: Mapped[dict[str, str | None]] = mapped_column(sa.JSON)
    """The address, the user agent and the name of the client, and the time of the call."""


class KeyValueRecord(Base):
    """A value that a flow stores across executions."""

    __tablename__ = "key_values"

    flow_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("flows.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    value: Mapped[str] = mapped_column(sa.Text, default="null", server_default="null")
    """The value as JSON."""
    size: Mapped[int] = mapped_column(default=0, server_default="0")
    """Size of key and value in bytes."""
    written_by: Mapped[str | None] = mapped_column(sa.String(320))
    """Ids of the last 40 steps that wrote it, 8 characters each, the newest first."""
    updated_at: Mapped[UpdatedAt]


class FlowVarsRecord(Base):
    """The variables of a flow. A row does not change: executions refer to the one at their acceptance."""

    __tablename__ = "flow_vars"
    __table_args__ = (sa.Index(None, "flow_id"),)

    id: Mapped[Id]
    flow_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("flows.id", ondelete="CASCADE"))
    values: Mapped[str] = mapped_column(sa.Text)
    """A JSON object."""
    created_at: Mapped[CreatedAt]
    replaced_at: Mapped[datetime | None]
    """When other variables took its place. Executions that were accepted before may still read it."""


class FailureNotificationRecord(Base):
    """A message to a flow's owner: about an execution that failed, a schedule that was disabled, or a budget.

    It is written in the transaction that ends the execution, disables the schedule or stores the warning. One of
    `execution_id`, `trigger_id` and `flow_id` is set.
    """

    __tablename__ = "failure_notifications"
    __table_args__ = (
        sa.UniqueConstraint("execution_id", "channel"),
        partial_index("ix_failure_notifications_due", "due_at", where="due_at IS NOT NULL"),
        partial_index("ix_failure_notifications_trigger", "trigger_id", where="trigger_id IS NOT NULL"),
        partial_index(
            "ix_failure_notifications_flow", "flow_id", "subject", "channel", where="flow_id IS NOT NULL", unique=True
        ),
    )

    id: Mapped[Id]
    execution_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("executions.id", ondelete="CASCADE"))
    trigger_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("triggers.id", ondelete="CASCADE"))
    flow_id: Mapped[uuid.UUID | None]
    """Of a message about a budget. Without a foreign key, which SQLite cannot add."""
    subject: Mapped[str | None] = mapped_column(sa.String(80))
    """Identifies the message about a budget, so that it is sent once."""
    reason: Mapped[str | None] = mapped_column(sa.Text)
    """Why the schedule was disabled; the trigger itself may have been enabled again since. Or how much was used."""
    channel: Mapped[NotificationChannel] = mapped_column(enum_text(NotificationChannel))
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    due_at: Mapped[datetime | None]
    """When the next attempt is due; null after the delivery or the last attempt."""
    delivered_at: Mapped[datetime | None]
    error_message: Mapped[str | None] = mapped_column(sa.Text)
    """The error of the last attempt."""
    created_at: Mapped[CreatedAt]


class SigningSecretRecord(Base):
    """A secret with which the sender of a webhook proves who it is, encrypted."""

    __tablename__ = "signing_secrets"
    __table_args__ = (sa.Index(None, "trigger_id"),)

    id: Mapped[Id]
    trigger_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("triggers.id", ondelete="CASCADE"))
    hint: Mapped[str] = mapped_column(sa.String(16))
    """The last characters."""
    ciphertext: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[CreatedAt]


class WebhookDeliveryRecord(Base):
    """A call of a webhook that started no execution: it was rejected, or it repeated an earlier one.

    The last ones of each webhook are kept. Executions are the record of the other calls.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (sa.Index(None, "trigger_id", "id"),)

    id: Mapped[Id]
    trigger_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("triggers.id", ondelete="CASCADE"))
    received_at: Mapped[CreatedAt]
    status: Mapped[int]
    """The status of the response."""
    code: Mapped[str] = mapped_column(sa.String(64))
    message: Mapped[str] = mapped_column(sa.String(500))
    """The reason, for the owner of the webhook."""
    bytes: Mapped[int]
    """The size of the body."""
    execution_id: Mapped[uuid.UUID | None]
    """The execution that an earlier call started. No foreign key: it may be deleted."""


class ExecutionCounters:
    """Counters of executions. The sum of the slots counts; one slot may be negative."""

    executions: Mapped[Counter]
    """Of every status, including unknown ones."""
    running: Mapped[Counter]
    success: Mapped[Counter]
    error: Mapped[Counter]
    timeout: Mapped[Counter]
    cancelled: Mapped[Counter]
    durations: Mapped[Counter]
    """Executions that have a duration."""
    duration_ms: Mapped[Counter]
    """The sum of the durations."""
    input_tokens: Mapped[Counter]
    output_tokens: Mapped[Counter]


class ExecutionTotalsRecord(ExecutionCounters, Base):
    """The executions of a flow, by mode. Triggers of the database maintain it, and delete it with the flow."""

    __tablename__ = "execution_totals"

    flow_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    mode: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class ExecutionSeriesRecord(ExecutionCounters, Base):
    """The executions of a flow that started in a bucket of time. Maintained like `ExecutionTotalsRecord`."""

    __tablename__ = "execution_series"

    flow_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    mode: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    seconds: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """The width of the bucket: 60 or 900."""
    start: Mapped[datetime] = mapped_column(primary_key=True)
    """The start of the bucket."""
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


create_with(ExecutionSeriesRecord.__table__, create_triggers)
