"""Tables of the access to language models."""

from __future__ import annotations

import uuid
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from bloxserver.models.base import Base, Counter, CreatedAt, Id, UpdatedAt, partial_index


class LlmProviderRecord(Base):
    """The state of the circuit breaker of a provider. Providers without a row are closed."""

    __tablename__ = "llm_providers"

    name: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    failures: Mapped[Counter]
    successes: Mapped[Counter]
    open_until: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    probe_until: Mapped[datetime | None]
    updated_at: Mapped[UpdatedAt]


class LlmProviderLeaseRecord(Base):
    """The slots of a provider that a process may use. All processes together have at most `max_concurrent`."""

    __tablename__ = "llm_provider_leases"

    provider: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    holder: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    """The process."""
    slots: Mapped[Counter]
    wanted: Mapped[Counter]
    """The most slots that the process could have used since it renewed the lease before."""
    expires_at: Mapped[datetime]


class LlmWindowRecord(Base):
    """What a user has used of the limits of their plan in the current minute, with the keys of the operator."""

    __tablename__ = "llm_windows"

    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    minute: Mapped[int] = mapped_column(sa.BigInteger)
    """Minutes since 1970. If a later minute has begun, nothing is used."""
    requests: Mapped[Counter]
    tokens: Mapped[Counter]
    active: Mapped[Counter]
    """Reservations that have not ended, of any minute."""


class LlmReservationRecord(Base):
    """A call of a language model that has not ended, or whose process has died."""

    __tablename__ = "llm_reservations"
    __table_args__ = (sa.Index(None, "user_id"), sa.Index(None, "expires_at"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    minute: Mapped[int] = mapped_column(sa.BigInteger)
    tokens: Mapped[int] = mapped_column(sa.BigInteger)
    expires_at: Mapped[datetime]


class LlmCallRecord(Base):
    """A call of a language model that has ended. Without foreign keys to what retention deletes before it."""

    __tablename__ = "llm_calls"
    __table_args__ = (
        sa.Index(None, "user_id", "created_at"),
        # With what the sum of a day needs, which is read every few seconds.
        sa.Index(None, "created_at", "own_key", "cost_nanousd"),
        partial_index("ix_llm_calls_execution_id", "execution_id", where="execution_id IS NOT NULL"),
    )

    id: Mapped[Id]
    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    flow_id: Mapped[uuid.UUID | None]
    execution_id: Mapped[uuid.UUID | None]
    step_id: Mapped[uuid.UUID | None]
    provider: Mapped[str | None] = mapped_column(sa.String(40))
    """None if no provider was asked."""
    model: Mapped[str] = mapped_column(sa.String(200))
    """The requested name, of a model or an alias."""
    input_tokens: Mapped[Counter]
    output_tokens: Mapped[Counter]
    cost_nanousd: Mapped[int | None] = mapped_column(sa.BigInteger)
    """In billionths of a US dollar; None if the price is unknown."""
    cached: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    own_key: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    attempts: Mapped[Counter]
    """Requests to providers."""
    first_token_ms: Mapped[int | None] = mapped_column(sa.BigInteger)
    """None if the response was not streamed."""
    duration_ms: Mapped[Counter]
    error_code: Mapped[str | None] = mapped_column(sa.String(64))
    created_at: Mapped[CreatedAt]
