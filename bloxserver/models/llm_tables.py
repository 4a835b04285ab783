"""Tables of the access to language models."""

from __future__ import annotations

import uuid
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from bloxserver.models.base import Base, Counter, UpdatedAt


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
