from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.config import JsonDict

from bloxserver.api.large_values import MaybeRaw
from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime, now
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import FlowStatus, TriggerType
from bloxserver.services.cron import CATCH_UP, MAX_CRON_LENGTH
from bloxserver.services.webhook_responses import MAX_SECONDS, Respond
from bloxserver.services.webhook_schemes import SIGNATURE_SCHEMAS


def _unless_past(moment: datetime | None) -> datetime | None:
    return None if moment is None or moment <= now() else moment


class Trigger(CamelModel):
    """A trigger starts executions of a flow. Token and URL are null for all types except webhooks."""

    id: UUID
    flow_id: UUID
    type: TriggerType
    name: str
    config: MaybeRaw[dict[str, Any]]
    webhook_token: str | None
    webhook_url: str | None = Field(description="The URL of the webhook. It contains the secret token.")
    enabled: bool = Field(description="Whether the trigger starts executions.")
    next_fire_at: UtcTime | None = Field(description="When a schedule fires next; null while its flow is not running.")
    last_fired_at: UtcTime | None
    disabled_reason: str | None = Field(
        description="Why the server disabled the schedule; null otherwise, and once it is enabled or changed."
    )
    previous_token_expires_at: Annotated[UtcTime | None, AfterValidator(_unless_past)] = Field(
        description="Until when the token before the last regeneration is valid; null if it is not."
    )
    created_at: UtcTime


SCHEDULE_CONFIG: JsonDict = {
    "properties": {
        "cron": {"type": "string", "format": "cron", "maxLength": MAX_CRON_LENGTH},
        "timezone": {"type": "string", "format": "timezone"},
        "catch_up": {"enum": [*CATCH_UP]},
    },
    "required": ["cron"],
}
WEBHOOK_CONFIG: JsonDict = {
    "properties": {
        "signature": {"anyOf": [*SIGNATURE_SCHEMAS, {"type": "null"}]},
        "respond": {"enum": [*Respond]},
        "respond_seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SECONDS},
    }
}


def _config_of(kind: TriggerType, config: JsonDict) -> JsonDict:
    return {
        "if": {"properties": {"type": {"const": kind.value}}, "required": ["type"]},
        "then": {"properties": {"config": config}},
    }


CONFIG_BY_TYPE: JsonDict = {
    "allOf": [_config_of(TriggerType.SCHEDULE, SCHEDULE_CONFIG), _config_of(TriggerType.WEBHOOK, WEBHOOK_CONFIG)]
}


class CreateTriggerRequest(RequestModel):
    """A new trigger."""

    model_config = ConfigDict(json_schema_extra=CONFIG_BY_TYPE)

    type: TriggerType
    name: str = Field(min_length=1, max_length=100, examples=["Orders from the shop"])
    config: MaybeRaw[dict[str, Any]] = Field(
        description="A schedule needs `cron` (five fields). `timezone` defaults to UTC. `target` is the listener that "
        "gets the input; the default is the entry listener. `signature` is how a webhook verifies its senders, "
        "and `respond` when it responds.",
        examples=[{"cron": "0 9 * * 1-5", "timezone": "Europe/Berlin"}],
    )


class UpdateTriggerRequest(RequestModel):
    """Changes of a trigger. An absent or null member is not changed."""

    name: str | None = Field(None, min_length=1, max_length=100, examples=["Orders from the shop"])
    config: MaybeRaw[dict[str, Any] | None] = None
    enabled: bool | None = Field(None, strict=True)

    def changes(self) -> dict[str, Any]:
        """The columns to write."""
        return {name: value for name, value in self.sent().items() if value is not None}


class UpcomingFirings(CamelModel):
    """The next times at which the schedule fires if the flow is running and the trigger is enabled."""

    times: list[UtcTime]


class WebhookAccepted(CamelModel):
    """The response to a webhook."""

    status: str = Field(examples=["accepted"])
    execution_id: UUID
    message: str


class WebhookTest(CamelModel):
    """The response to a test of a webhook's URL."""

    valid: bool
    trigger_name: str
    flow_name: str
    flow_status: FlowStatus
