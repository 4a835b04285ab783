from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import Field

from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import FlowStatus, TriggerType


class Trigger(CamelModel):
    """What starts executions of a flow. Only webhooks have a token and a URL."""

    id: UUID
    flow_id: UUID
    type: TriggerType
    name: str
    config: dict[str, Any]
    webhook_token: str | None
    webhook_url: str | None
    enabled: bool
    next_fire_at: UtcTime | None = Field(description="When a schedule fires next; null while its flow does not run.")
    last_fired_at: UtcTime | None
    disabled_reason: str | None = Field(
        description="Why the server disabled the schedule; null otherwise, and once it is enabled or changed."
    )
    created_at: UtcTime


class CreateTriggerRequest(RequestModel):
    type: TriggerType
    name: str = Field(min_length=1, max_length=100, examples=["Orders from the shop"])
    config: dict[str, Any] = Field(
        description="A schedule needs `cron` (five fields), `timezone` is UTC unless given; "
        "`target` names the listener to start at.",
        examples=[{"cron": "0 9 * * 1-5", "timezone": "Europe/Berlin"}],
    )


class UpdateTriggerRequest(RequestModel):
    """What is absent, or null, stays as it is."""

    name: str | None = Field(None, min_length=1, max_length=100, examples=["Orders from the shop"])
    config: dict[str, Any] | None = None
    enabled: bool | None = Field(None, strict=True)

    def changes(self) -> dict[str, Any]:
        """The columns to write."""
        return self.model_dump(exclude_none=True)


class UpcomingFirings(CamelModel):
    """When a schedule fires next, as if its flow ran."""

    times: list[UtcTime]


class WebhookAccepted(CamelModel):
    status: str = Field(examples=["accepted"])
    execution_id: UUID
    message: str


class WebhookTest(CamelModel):
    valid: bool
    trigger_name: str
    flow_name: str
    flow_status: FlowStatus
