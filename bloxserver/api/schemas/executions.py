from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import Field

from bloxserver.api.models.enums import ExecutionStatus, InputEncoding, TriggerType
from bloxserver.api.schemas.base import CamelModel, RequestModel, UtcTime


class ExecutionSummary(CamelModel):
    id: UUID
    status: ExecutionStatus
    trigger_type: TriggerType
    started_at: UtcTime = Field(description="When it was accepted.")
    duration_ms: int | None


class Execution(ExecutionSummary):
    """One run of a flow."""

    flow_id: UUID
    trigger_id: UUID | None
    picked_up_at: UtcTime | None = Field(description="When a worker took it; null while it waits for one.")
    completed_at: UtcTime | None
    error_message: str | None
    input_payload: str | None
    input_encoding: InputEncoding
    output_payload: str | None


class FlowStats(CamelModel):
    flow_id: UUID
    executions_total: int
    executions_success: int
    executions_error: int
    avg_duration_ms: float = Field(description="Mean over the executions that have a duration; 0 if none has.")
    last_executed_at: UtcTime | None


class RunRequest(RequestModel):
    input_payload: Any = Field(
        None, description="Text, or any JSON value, given to the entry listener.", examples=[{"name": "Ada"}]
    )
