"""Tables of accounts and of the installation; no flow refers to them."""

from __future__ import annotations

import uuid
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from bloxserver.clock import now
from bloxserver.models.base import Base, Counter, CreatedAt, Id, UpdatedAt, partial_index
from bloxserver.models.enums import ActorKind
from bloxserver.models.maintained import create_with
from bloxserver.models.stored_bytes import create_triggers
from bloxserver.models.types import database_now, enum_text


class DeletedUserRecord(Base):
    """The identity of a deleted user, so that no late event and no token that is still valid creates the user again."""

    __tablename__ = "deleted_users"

    identity: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    """As `users.clerk_id`."""
    deleted_at: Mapped[CreatedAt]


class UsageRecord(Base):
    """The usage of a user in a billing period.

    Counts are distributed over several rows, the slots, so that concurrent runs do not wait for the same row lock.
    """

    __tablename__ = "usage_records"
    __table_args__ = (sa.UniqueConstraint("user_id", "period_start", "slot"), sa.Index(None, "period_end"))

    id: Mapped[Id]
    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    period_start: Mapped[datetime]
    period_end: Mapped[datetime | None]
    slot: Mapped[int] = mapped_column(default=0, server_default="0")
    workflow_runs: Mapped[Counter]
    llm_tokens_in: Mapped[Counter]
    llm_tokens_out: Mapped[Counter]
    last_synced_runs: Mapped[Counter]
    last_synced_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]


class StoredBytesRecord(Base):
    """The bytes that a user's rows in one table take. Triggers of the database maintain it.

    The sum of the slots counts; one slot may be negative.
    """

    __tablename__ = "stored_bytes"

    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    source: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    """The table whose rows are counted."""
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bytes: Mapped[Counter]


create_with(StoredBytesRecord.__table__, create_triggers)


class EmailCountRecord(Base):
    """The emails that a user sent through the installation's mail server on the last day with emails, in UTC."""

    __tablename__ = "email_counts"

    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date]
    emails: Mapped[Counter]
    """One for each recipient."""


class AccountEmailRecord(Base):
    """An email of the installation to a user, which is sent at most once. `account_emails.outbox` changes it."""

    __tablename__ = "account_emails"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "event_key"),
        sa.Index(None, "created_at"),
        partial_index("ix_account_emails_due", "due_at", where="due_at IS NOT NULL"),
    )

    id: Mapped[Id]
    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(sa.String(64))
    """Not an enum, so that an older version can read the kinds of a newer one."""
    event_key: Mapped[str] = mapped_column(sa.String(500))
    """What caused the email."""
    data: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    """Values of the template."""
    due_at: Mapped[datetime | None]
    """When it is sent next; while it is claimed, when the claim ends; null if it is not sent any more."""
    attempts: Mapped[Counter]
    attempted_at: Mapped[datetime | None]
    """The start of the last attempt; null if it is known that the mail server has not accepted the email."""
    sent_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(sa.String(255))
    created_at: Mapped[CreatedAt]


class UserApiKeyRecord(Base):
    """A user's own API key for a provider, encrypted."""

    __tablename__ = "user_api_keys"
    __table_args__ = (sa.UniqueConstraint("user_id", "provider"),)

    id: Mapped[Id]
    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    provider: Mapped[str] = mapped_column(sa.String(64))
    encrypted_key: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    key_hint: Mapped[str | None] = mapped_column(sa.String(16))
    is_valid: Mapped[bool] = mapped_column(default=True, server_default=sa.true())
    last_error: Mapped[str | None] = mapped_column(sa.Text)
    last_used_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]


class ApiKeyRecord(Base):
    """A key with which programs call the API as a user. The key itself is not stored."""

    __tablename__ = "api_keys"
    __table_args__ = (sa.UniqueConstraint("key_hash"), sa.Index(None, "user_id"))

    id: Mapped[Id]
    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(sa.String(100))
    key_hash: Mapped[bytes] = mapped_column(sa.LargeBinary(32))
    """SHA-256."""
    hint: Mapped[str] = mapped_column(sa.String(32))
    scopes: Mapped[list[str]] = mapped_column(sa.JSON)
    flow_ids: Mapped[list[str] | None] = mapped_column(sa.JSON(none_as_null=True))
    """The flows to which the key is restricted; null if it is not."""
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Written at most once a minute."""
    last_used_address: Mapped[str | None] = mapped_column(sa.String(64))
    created_at: Mapped[CreatedAt]


class SecretRecord(Base):
    """A secret of a user, encrypted."""

    __tablename__ = "secrets"
    __table_args__ = (sa.UniqueConstraint("user_id", "name"),)

    id: Mapped[Id]
    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(sa.String(64))
    ciphertext: Mapped[str] = mapped_column(sa.Text, default="", server_default="")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]


class IdempotencyKeyRecord(Base):
    """The `Idempotency-Key` of a request that created something, so that a repeated request does not create it again.

    `services.idempotency` replaces a key that has expired, and retention deletes it.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (sa.Index(None, "created_at"),)

    owner_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    """The user or the webhook whose keys these are. No foreign key: an expired key refers to nothing."""
    key_hash: Mapped[bytes] = mapped_column(sa.LargeBinary(32), primary_key=True)
    """SHA-256. The key itself may be long, and may be a sender's secret."""
    request_hash: Mapped[bytes] = mapped_column(sa.LargeBinary(32))
    """HMAC-SHA-256 of what a repeated request must have in common with the first.

    The key of the HMAC is the idempotency key: a plain hash would let readers of the table guess secrets in bodies.
    """
    result: Mapped[str | None] = mapped_column(sa.String(255))
    """The id or the name of what the first request created."""
    created_at: Mapped[CreatedAt]


class AuditEventRecord(Base):
    """A change by a user, an API key or an operator. Without foreign keys, because it outlives what it is about."""

    __tablename__ = "audit_events"
    __table_args__ = (sa.Index(None, "user_id", "created_at", "id"), sa.Index(None, "created_at", "id"))

    id: Mapped[Id]
    created_at: Mapped[CreatedAt]
    user_id: Mapped[uuid.UUID]
    """The user whose account was changed."""
    actor: Mapped[ActorKind] = mapped_column(enum_text(ActorKind))
    actor_id: Mapped[str] = mapped_column(sa.String(64))
    """The id of the user or of the API key; `clerk`; or the name of the operator's account of the operating system."""
    action: Mapped[str] = mapped_column(sa.String(64))
    """Not an enum, so that an older version can read the actions of a newer one."""
    resource_id: Mapped[str] = mapped_column(sa.String(64))
    """What was changed: an id, or the name of a secret."""
    flow_id: Mapped[uuid.UUID | None]
    """The flow to which the resource belongs, or which it is."""
    address: Mapped[str | None] = mapped_column(sa.String(64))
    request_id: Mapped[str | None] = mapped_column(sa.String(128))
    before: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    """The changed members before and after the change, by their names in the API."""


class StripeEventRecord(Base):
    """A received Stripe event. A repeated delivery has the same id, and is stored once."""

    __tablename__ = "stripe_events"

    event_id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    event_type: Mapped[str] = mapped_column(sa.String(255), default="", server_default="")
    received_at: Mapped[CreatedAt]
    processed_at: Mapped[datetime | None]
    error_message: Mapped[str | None] = mapped_column(sa.Text)


class WorkerRecord(Base):
    """A worker process and its last heartbeat. Without heartbeats, other workers recover its executions."""

    __tablename__ = "workers"

    worker_id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    last_heartbeat_at: Mapped[datetime] = mapped_column(default=now, server_default=database_now())
    started_at: Mapped[CreatedAt]
    version: Mapped[str | None] = mapped_column(sa.String(32))


class RateCounterRecord(Base):
    """Requests that all processes have counted for a rate limit in one minute. `services.rate_counters` deletes it."""

    __tablename__ = "rate_counters"

    minute: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    """Minutes since 1970."""
    key: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    """The limit and a hash of what it limits. No token or address can be read from it."""
    count: Mapped[Counter]
