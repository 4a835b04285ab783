from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import Field

from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import ExecutionStatus, InputEncoding, StepStatus, TriggerType


class ExecutionSummary(CamelModel):
    id: UUID
    status: ExecutionStatus
    trigger_type: TriggerType
    started_at: UtcTime = Field(description="When it was accepted.")
    duration_ms: int | None


class ExecutionOutline(ExecutionSummary):
    """An execution without its payloads."""

    flow_id: UUID
    flow_version: int | None = Field(description="The version of the flow's definition that it runs.")
    trigger_id: UUID | None
    retry_of: UUID | None = Field(description="The execution that this one does again.")
    parent_id: UUID | None = Field(description="The execution that called this one.")
    picked_up_at: UtcTime | None = Field(description="When a worker took it; null while it waits for one.")
    completed_at: UtcTime | None
    error_message: str | None
    input_encoding: InputEncoding
    input_tokens: int = Field(description="Tokens that language models read for it.")
    output_tokens: int = Field(description="Tokens that language models wrote for it.")


class Execution(ExecutionOutline):
    """One run of a flow."""

    input_payload: str | None
    output_payload: str | None


class AwaitedExecution(Execution):
    """What a wait came to: `status` says whether the execution has ended."""

    execution_id: UUID = Field(description="The same as `id`.")
    message: str


class StepOutline(CamelModel):
    """A step without its payloads."""

    id: UUID
    parent_id: UUID | None = Field(description="The step whose answer it handles; null for the entry.")
    listener: str
    handler: str | None
    status: StepStatus
    attempt: int
    copied: bool = Field(description="Taken over from the execution that this one retries.")
    error_code: str | None
    error_message: str | None
    routed_to: list[str] | None = Field(description="The peers that the block chose for its answer.")
    called_execution_id: UUID | None = Field(description="The execution that gives the answer.")
    started_at: UtcTime
    completed_at: UtcTime | None
    resumes_at: UtcTime | None = Field(description="When a step that waits goes on.")
    duration_ms: int | None
    input_tokens: int
    output_tokens: int


class Step(StepOutline):
    """One handled message of an execution."""

    input_payload: str | None
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
