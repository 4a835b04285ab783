from __future__ import annotations

from uuid import UUID

from pydantic import Field, SecretStr

from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import BillingStatus, Tier


class User(CamelModel):
    """The signed-in user."""

    id: UUID
    clerk_id: str
    email: str
    name: str | None
    avatar_url: str | None
    tier: Tier
    billing_status: BillingStatus
    trial_ends_at: UtcTime | None
    current_period_end: UtcTime | None
    created_at: UtcTime | None


class UsageDashboard(CamelModel):
    """What the user has used in the current billing period."""

    period_start: UtcTime
    period_end: UtcTime
    runs_used: int
    runs_limit: int | None = Field(description="Runs that the plan includes; null is unlimited.")
    runs_percentage: float = Field(description="Used runs in percent of the limit; 0 where there is none.")
    tokens_used: int = Field(description="LLM tokens, in and out.")
    estimated_overage: float = Field(description="Cost of the runs beyond the limit, in USD.")
    days_remaining: int = Field(description="Whole days until the period ends, rounded up.")


class ApiKeyInfo(CamelModel):
    """A stored key of a user for a provider; the key itself is never shown."""

    id: UUID
    provider: str
    key_hint: str | None
    is_valid: bool
    last_used_at: UtcTime | None
    created_at: UtcTime


class AddApiKeyRequest(RequestModel):
    provider: str = Field(min_length=1, max_length=64)
    api_key: SecretStr = Field(min_length=8, max_length=512)
