from __future__ import annotations

from uuid import UUID

from pydantic import Field, SecretStr

from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.model_catalogue import ProviderKind
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


class EventReceived(CamelModel):
    """The response to an event of Clerk."""

    status: str


class LimitUse(CamelModel):
    """A limit of the user's plan, and how much of it is used."""

    name: str = Field(
        description="runs: in this billing period; flows; triggers_per_flow: the flow with the most triggers; secrets;"
        " api_keys; stored_bytes."
    )
    used: int
    limit: int | None = Field(description="The maximum; null if unlimited.")


class UsageDashboard(CamelModel):
    """The user's usage in the current billing period."""

    period_start: UtcTime
    period_end: UtcTime
    runs_used: int
    runs_limit: int | None = Field(description="Runs that the plan includes; null if unlimited.")
    runs_percentage: float = Field(description="Used runs in percent of the limit; 0 if there is no limit.")
    tokens_used: int = Field(description="Input and output tokens of language models.")
    estimated_overage: float = Field(description="Price of the runs beyond the limit, in USD.")
    days_remaining: int = Field(description="Whole days until the period ends, rounded up.")
    stored_bytes: int = Field(description="Bytes in executions, steps, versions and key-value storage.")
    stored_bytes_limit: int = Field(description="Stored bytes that the plan allows.")
    included_stored_bytes: int | None = Field(description="Stored bytes without a price; null if none has one.")
    storage_overage: float = Field(
        description="Price of the bytes beyond the included ones on the days of the period until today, in USD."
    )
    limits: list[LimitUse] = Field(description="The limits of the plan that count something.")


class UsagePeriod(CamelModel):
    """The user's usage in one billing period."""

    period_start: UtcTime
    period_end: UtcTime | None
    runs: int
    input_tokens: int = Field(description="Input tokens of language models.")
    output_tokens: int = Field(description="Output tokens of language models.")


class FlowUsage(CamelModel):
    """What one flow used."""

    flow_id: UUID
    flow_name: str
    runs: int = Field(description="Runs of every status, with those that other flows called.")
    input_tokens: int = Field(description="Input tokens of language models.")
    output_tokens: int = Field(description="Output tokens of language models.")


class FlowUsagePage(CamelModel):
    """A page of flows with runs in a time, those with most runs first."""

    period_start: UtcTime = Field(description="The first minute whose runs count.")
    period_end: UtcTime = Field(description="The end of the last minute whose runs count.")
    items: list[FlowUsage]
    next_cursor: str | None = Field(description="The `cursor` of the next page; null on the last page.")


class ApiKeyInfo(CamelModel):
    """A user's own key for a provider of language models, without the key itself."""

    id: UUID
    provider: str
    key_hint: str | None = Field(description="The last four characters of the key.")
    is_valid: bool = Field(description="False after the provider has rejected the key, which is not used any more.")
    last_error: str | None = Field(description="Why the key is invalid.")
    last_used_at: UtcTime | None = Field(description="The last response with the key, exact to a minute.")
    created_at: UtcTime = Field(description="When the key was added or replaced.")


class AddApiKeyRequest(RequestModel):
    """A key for a provider of language models. It replaces the user's key for this provider."""

    provider: ProviderKind
    api_key: SecretStr = Field(
        min_length=20,
        max_length=300,
        description="Printable ASCII without blanks.",
        examples=["sk-ant-api03-0123456789"],
    )
