"""Tables of users, flows and executions.

Every optional column is nullable or has a default, here and in the database.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, query_expression, relationship, validates

from bloxserver.clock import now
from bloxserver.models.account_tables import (
    AccountEmailRecord,
    ApiKeyRecord,
    AuditEventRecord,
    DeletedUserRecord,
    EmailCountRecord,
    IdempotencyKeyRecord,
    RateCounterRecord,
    SecretRecord,
    StoredBytesRecord,
    StripeEventRecord,
    UsageRecord,
    UserApiKeyRecord,
    WorkerRecord,
)
from bloxserver.models.base import Base, Counter, CreatedAt, Id, UpdatedAt, partial_index
from bloxserver.models.billing_tables import BillingPeriodRecord, MeterReportRecord, StorageSampleRecord
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.enums import (
    BillingStatus,
    ExecutionStatus,
    FlowStatus,
    InputEncoding,
    NotificationChannel,
    Scope,
    StepStatus,
    Tier,
    TierSource,
    TriggerType,
)
from bloxserver.models.flow_data_tables import (
    ExecutionSeriesRecord,
    ExecutionStepRecord,
    ExecutionTotalsRecord,
    FailureNotificationRecord,
    FlowVarsRecord,
    KeyValueRecord,
    ResumptionRecord,
    SigningSecretRecord,
    WebhookDeliveryRecord,
)
from bloxserver.models.llm_tables import (
    LlmCallRecord,
    LlmProviderLeaseRecord,
    LlmProviderRecord,
    LlmReservationRecord,
    LlmWindowRecord,
)
from bloxserver.models.types import LenientJson, StoredJson, TierText, database_now, enum_text
from bloxserver.raw_json import RawJson
from bloxserver.settings import get_settings

__all__ = [
    "AccountEmailRecord",
    "ApiKeyRecord",
    "AuditEventRecord",
    "BillingPeriodRecord",
    "BillingStatus",
    "DeletedUserRecord",
    "EmailCountRecord",
    "ExecutionRecord",
    "ExecutionSeriesRecord",
    "ExecutionStatus",
    "ExecutionStepRecord",
    "ExecutionTotalsRecord",
    "FailureNotificationRecord",
    "FlowRecord",
    "FlowStatus",
    "FlowVarsRecord",
    "FlowVersionRecord",
    "IdempotencyKeyRecord",
    "InputEncoding",
    "KeyValueRecord",
    "LlmCallRecord",
    "LlmProviderLeaseRecord",
    "LlmProviderRecord",
    "LlmReservationRecord",
    "LlmWindowRecord",
    "MeterReportRecord",
    "NotificationChannel",
    "RateCounterRecord",
    "ResumptionRecord",
    "Scope",
    "SecretRecord",
    "SigningSecretRecord",
    "StepStatus",
    "StorageSampleRecord",
    "StoredBytesRecord",
    "StripeEventRecord",
    "Tier",
    "TriggerRecord",
    "TriggerType",
    "UsageRecord",
    "UserApiKeyRecord",
    "UserRecord",
    "WebhookDeliveryRecord",
    "WorkerRecord",
]


WAITING = "status = 'running' AND lease IS NULL"
CLAIMED = "status = 'running' AND lease IS NOT NULL"
QUARANTINE_THRESHOLD = 3
QUARANTINED = f"{WAITING} AND crash_count >= {QUARANTINE_THRESHOLD}"
DELETED = "deleted_at IS NOT NULL"
ANONYMOUS = "deleted:"
"""The beginning of the `clerk_id` of users whose deletion is complete, and whose row is kept."""
DELETING = f"deleted_at IS NOT NULL AND clerk_id NOT LIKE '{ANONYMOUS}%'"


class UserRecord(Base):
    __tablename__ = "users"
    __table_args__ = (partial_index("ix_users_deleting", "deleted_at", where=DELETING),)

    id: Mapped[Id]
    clerk_id: Mapped[str] = mapped_column(sa.String(255), unique=True)
    """The subject of a user of Clerk; for others `oidc:` or `local:` and a text that identifies them.

    `deleted:` and a random id for a deleted user whose row is kept.
    """
    issuer: Mapped[str | None] = mapped_column(sa.String(512))
    subject: Mapped[str | None] = mapped_column(sa.String(255))
    """Issuer and subject of a user of an OpenID Connect provider."""
    email: Mapped[str] = mapped_column(sa.String(320), default="", server_default="")
    name: Mapped[str | None] = mapped_column(sa.String(255))
    avatar_url: Mapped[str | None] = mapped_column(sa.Text)
    tier: Mapped[Tier] = mapped_column(TierText(), default=Tier.FREE, server_default=Tier.FREE.value)
    billing_status: Mapped[BillingStatus] = mapped_column(
        enum_text(BillingStatus), default=BillingStatus.ACTIVE, server_default=BillingStatus.ACTIVE.value
    )
    stripe_customer_id: Mapped[str | None] = mapped_column(sa.String(255), unique=True)
    stripe_subscription_id: Mapped[str | None] = mapped_column(sa.String(255), unique=True)
    stripe_subscription_item_id: Mapped[str | None] = mapped_column(sa.String(255))
    stripe_status: Mapped[str | None] = mapped_column(sa.String(32))
    """Stripe's status of the subscription."""
    stripe_synced_at: Mapped[datetime | None]
    """The start of the last request to Stripe whose result is stored, by the database's clock."""
    tier_source: Mapped[TierSource | None] = mapped_column(enum_text(TierSource))
    trial_used_at: Mapped[datetime | None]
    """When the user had their trial, of which there is one."""
    cancel_at: Mapped[datetime | None]
    """When the subscription ends, if it was cancelled."""
    grace_ends_at: Mapped[datetime | None]
    """Until when the tier is kept after a failed payment."""
    trial_ends_at: Mapped[datetime | None]
    current_period_start: Mapped[datetime | None]
    current_period_end: Mapped[datetime | None]
    limits: Mapped[dict[str, Any] | None] = mapped_column(LenientJson(none_as_null=True))
    """Limits that an operator set for this user: names of attributes of `plans.Plan`, and their values."""
    disabled_at: Mapped[datetime | None]
    """When an operator disabled the user, whose requests are refused since then."""
    clerk_updated_at: Mapped[int | None] = mapped_column(sa.BigInteger)
    """When Clerk last changed the profile that is stored, in milliseconds since 1970; null before the first event."""
    deleted_at: Mapped[datetime | None]
    """When the user was deleted. Requests are refused, and the rows are deleted in the background."""
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    flows: Mapped[list[FlowRecord]] = relationship(
        back_populates="user", lazy="raise", cascade="all, delete-orphan", passive_deletes=True
    )


class FlowRecord(Base):
    __tablename__ = "flows"
    __table_args__ = (
        sa.Index(None, "user_id", "updated_at", "id"),
        # Flows that the engine must start or stop.
        partial_index("ix_flows_unsettled", "updated_at", where="status IN ('starting', 'stopping')"),
        partial_index("ix_flows_deleted", "deleted_at", where=DELETED),
    )

    id: Mapped[Id]
    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    """The owner of the flow."""
    name: Mapped[str] = mapped_column(sa.String(100))
    description: Mapped[str | None] = mapped_column(sa.String(500))
    organism_yaml: Mapped[str] = mapped_column(sa.Text, default=DEFAULT_ORGANISM, server_default=DEFAULT_ORGANISM)
    canvas_state: Mapped[dict[str, Any] | RawJson | None] = mapped_column(StoredJson(none_as_null=True))
    status: Mapped[FlowStatus] = mapped_column(
        enum_text(FlowStatus), default=FlowStatus.STOPPED, server_default=FlowStatus.STOPPED.value
    )
    active_version_id: Mapped[uuid.UUID | None]
    """The version that the last start activated. No foreign key, because versions refer to their flow."""
    active_version: Mapped[int | None]
    """The number of the active version."""
    latest_version: Mapped[int | None]
    """The number of the newest version; null if there is none, as in rows that another program inserted."""
    vars_id: Mapped[uuid.UUID | None]
    """The row of its variables; null if it has none. No foreign key, because that row refers to the flow."""
    stop_requested_at: Mapped[datetime | None]
    """When the last stop was requested. Running executions have `STOP_GRACE_SECONDS` from then on."""
    container_id: Mapped[str | None] = mapped_column(sa.String(255))
    error_message: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]
    deleted_at: Mapped[datetime | None]
    """When the flow was deleted, if its rows are still being deleted in the background. Reads ignore such a flow."""

    user: Mapped[UserRecord] = relationship(back_populates="flows", lazy="raise")
    triggers: Mapped[list[TriggerRecord]] = relationship(
        back_populates="flow", lazy="raise", cascade="all, delete-orphan", passive_deletes=True
    )
    executions: Mapped[list[ExecutionRecord]] = relationship(
        back_populates="flow", lazy="raise", cascade="all, delete-orphan", passive_deletes=True
    )


class FlowVersionRecord(Base):
    """A saved definition, so that the definition of an execution remains available after edits."""

    __tablename__ = "flow_versions"
    __table_args__ = (sa.UniqueConstraint("flow_id", "number"),)

    id: Mapped[Id]
    flow_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("flows.id", ondelete="CASCADE"))
    number: Mapped[int]
    """The sequence number within the flow, starting at 1."""
    organism_yaml: Mapped[str] = mapped_column(sa.Text)
    canvas_state: Mapped[dict[str, Any] | RawJson | None] = mapped_column(StoredJson(none_as_null=True))
    created_at: Mapped[CreatedAt]


class TriggerRecord(Base):
    __tablename__ = "triggers"
    __table_args__ = (
        sa.Index(None, "flow_id", "created_at", "id"),
        partial_index("ix_triggers_schedules", "next_fire_at", where="type = 'schedule'"),
        partial_index("ix_triggers_deleted", "deleted_at", where=DELETED),
        partial_index("ix_triggers_previous_token", "previous_token", where="previous_token IS NOT NULL", unique=True),
    )

    id: Mapped[Id]
    flow_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("flows.id", ondelete="CASCADE"))
    type: Mapped[TriggerType] = mapped_column(enum_text(TriggerType))
    name: Mapped[str] = mapped_column(sa.String(100))
    config: Mapped[dict[str, Any] | RawJson] = mapped_column(StoredJson(), default=dict, server_default="{}")
    webhook_token: Mapped[str | None] = mapped_column(sa.String(255), unique=True)
    previous_token: Mapped[str | None] = mapped_column(sa.String(255))
    """The token before the last regeneration, which is valid until `previous_token_expires_at`."""
    previous_token_expires_at: Mapped[datetime | None]
    own_webhook_url: Mapped[str | None] = mapped_column("webhook_url", sa.Text)
    """A URL that another program stored; null for the URL based on `WEBHOOK_BASE_URL`."""
    enabled: Mapped[bool] = mapped_column(default=True, server_default=sa.true())
    next_fire_at: Mapped[datetime | None]
    """When a schedule fires next; null until the engine calculates it, and while the flow is not running."""
    last_fired_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None] = mapped_column(sa.Text)
    """Why the server disabled a schedule; null for one that its owner disabled."""
    failed_attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    """The number of consecutive attempts to fire a schedule that failed with errors that a retry may resolve."""
    last_error: Mapped[str | None] = mapped_column(sa.String(255))
    """The error of the last of these attempts: its type and its place in the code."""
    retry_at: Mapped[datetime | None]
    """The earliest time of the next attempt."""
    created_at: Mapped[CreatedAt]
    deleted_at: Mapped[datetime | None]
    """When the trigger was deleted, if executions still refer to it. Reads ignore such a trigger."""

    flow: Mapped[FlowRecord] = relationship(back_populates="triggers", lazy="raise")
    executions: Mapped[list[ExecutionRecord]] = relationship(
        back_populates="trigger", lazy="raise", passive_deletes=True
    )

    @validates("config")
    def _none_is_empty(self, name: str, value: dict[str, Any] | RawJson | None) -> dict[str, Any] | RawJson:
        return {} if value is None else value

    @property
    def webhook_url(self) -> str | None:
        """The URL of a webhook; None for other triggers."""
        if self.own_webhook_url is not None or self.webhook_token is None:
            return self.own_webhook_url
        return f"{get_settings().webhook_base_url}/{self.webhook_token}"

    @webhook_url.setter
    def webhook_url(self, value: str | None) -> None:
        self.own_webhook_url = value


class ExecutionRecord(Base):
    """One execution of a flow. The row is the queue entry; its status is `running` until the execution ends."""

    __tablename__ = "executions"
    __table_args__ = (
        sa.Index(None, "flow_id", "mode", "started_at", "id"),
        sa.Index(None, "flow_id", "mode", "status", "started_at", "id"),
        sa.Index(None, "trigger_id", "started_at", "id"),
        # Percentiles of durations, and lists of errors, among many executions that run or succeed.
        partial_index(
            "ix_executions_durations", "flow_id", "mode", "started_at", "duration_ms", where="duration_ms IS NOT NULL"
        ),
        partial_index("ix_executions_failed", "flow_id", "mode", "started_at", "id", where="error_message IS NOT NULL"),
        # The queue: executions that wait for a worker, by flow, so that one flow's backlog does not slow down others.
        partial_index("ix_executions_waiting", "flow_id", "resume_at", "started_at", "id", where=WAITING),
        # Waiting executions that may be the cause of repeated worker crashes.
        partial_index("ix_executions_quarantined", "crash_count", where=QUARANTINED),
        # Executions that workers have claimed.
        partial_index("ix_executions_claimed", "worker_id", "flow_id", where=CLAIMED),
        # Retries of an execution whose URLs are called.
        partial_index("ix_executions_retries", "retry_of", where="retry_of IS NOT NULL"),
        # After a crash, a repeated step must find the execution that it started before.
        partial_index("ix_executions_calls", "parent_id", "parent_key", where="parent_id IS NOT NULL", unique=True),
    )

    id: Mapped[Id]
    flow_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("flows.id", ondelete="CASCADE"))
    flow_version_id: Mapped[uuid.UUID | None] = mapped_column(
        sa.ForeignKey("flow_versions.id", ondelete="SET NULL"), index=True
    )
    """The version that it runs; null means the current definition of the flow."""
    flow_version: Mapped[int | None]
    """The number of this version."""
    trigger_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("triggers.id", ondelete="SET NULL"))
    trigger_type: Mapped[TriggerType] = mapped_column(enum_text(TriggerType))
    mode: Mapped[str] = mapped_column(sa.String(16), default="normal", server_default="normal")
    """`normal`, or a kind of execution that lists and statistics leave out."""
    target: Mapped[str | None] = mapped_column(sa.String(255))
    """The entry listener that the trigger specified; null for the default."""
    status: Mapped[ExecutionStatus] = mapped_column(
        enum_text(ExecutionStatus), default=ExecutionStatus.RUNNING, server_default=ExecutionStatus.RUNNING.value
    )
    started_at: Mapped[datetime] = mapped_column(default=now, server_default=database_now())
    """When the execution was accepted."""
    picked_up_at: Mapped[datetime | None]
    """When a worker first claimed it."""
    completed_at: Mapped[datetime | None]
    duration_ms: Mapped[int | None] = mapped_column(sa.BigInteger)
    error_message: Mapped[str | None] = mapped_column(sa.Text)
    input_payload: Mapped[str | None] = mapped_column(sa.Text)
    input_encoding: Mapped[InputEncoding] = mapped_column(
        enum_text(InputEncoding), default=InputEncoding.TEXT, server_default=InputEncoding.TEXT.value
    )
    output_payload: Mapped[str | None] = mapped_column(sa.Text)
    filtered: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """Whether no condition chose a listener for any of its outputs."""
    input_tokens: Mapped[Counter]
    """Input tokens of language models."""
    output_tokens: Mapped[Counter]
    """Output tokens of language models."""
    cost_usd: Mapped[float | None] = query_expression()
    """The cost of its calls of language models; None if a statement does not read it."""
    retry_of: Mapped[uuid.UUID | None]
    """The execution that this one retries. No foreign key, because that execution may be deleted."""
    parent_id: Mapped[uuid.UUID | None]
    """The execution whose step called this flow."""
    parent_key: Mapped[str | None] = mapped_column(sa.String(320))
    """The key and the attempt of the calling step."""
    depth: Mapped[int] = mapped_column(default=0, server_default="0")
    """The number of ancestors, through flow calls and through webhooks that flows sent."""
    active_ms: Mapped[Counter]
    """Milliseconds for which it ran until it was last suspended. They count against its time limit."""
    cpu_ms: Mapped[Counter]
    """Milliseconds of CPU time in other processes until it was last suspended. The plan limits them."""

    resume_at: Mapped[datetime | None]
    """The earliest time at which a worker may claim it; null if it was never suspended."""
    lease: Mapped[uuid.UUID | None]
    """The random id of the current claim; null while it waits. Only the worker with this lease may write."""
    worker_id: Mapped[str | None] = mapped_column(sa.String(64))
    """The worker that claimed it."""
    crash_count: Mapped[int] = mapped_column(default=0, server_default="0")
    """The number of consecutive crashes of its workers since it last made progress."""
    lost_lease: Mapped[uuid.UUID | None]
    """The lease whose end the last recovery counted as a crash. If its worker did not crash, it reverts the count."""
    trace_parent: Mapped[str | None] = mapped_column(sa.String(55))
    """The trace context of its trigger, as a `traceparent` (W3C Trace Context)."""
    vars_id: Mapped[uuid.UUID | None]
    """The variables of the flow at its acceptance. No foreign key: the row is kept while the execution runs."""
    trigger_context: Mapped[str | None] = mapped_column(sa.Text)
    """What expressions can read of its trigger, as a JSON object: its name, and facts of the request or the firing."""

    flow: Mapped[FlowRecord] = relationship(back_populates="executions", lazy="raise")
    trigger: Mapped[TriggerRecord | None] = relationship(back_populates="executions", lazy="raise")
