"""Tables of the access to language models."""

from __future__ import annotations

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
