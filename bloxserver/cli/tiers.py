from __future__ import annotations

from enum import StrEnum


class TierName(StrEnum):
    """The tiers, for options: `models.enums` would import SQLAlchemy."""

    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"
    HIGH_FREQUENCY = "high_frequency"
