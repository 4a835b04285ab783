from __future__ import annotations

from uuid import UUID

from pydantic import Field

from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.queries.execution_series import Interval


class FlowStats(CamelModel):
    """Statistics over all executions of a flow."""

    flow_id: UUID
    executions_total: int
    executions_success: int
    executions_error: int
    executions_timeout: int
    executions_cancelled: int
    executions_running: int
    avg_duration_ms: float = Field(description="Mean over the executions that have a duration; 0 if none has.")
    p50_duration_ms: int | None = Field(
        description="The median of the newest 1,000 executions that have a duration; null if none has."
    )
    p95_duration_ms: int | None = Field(description="The 95th percentile of the same ones.")
    p99_duration_ms: int | None = Field(description="The 99th percentile of the same ones.")
    input_tokens: int = Field(description="Input tokens of language models.")
    output_tokens: int = Field(description="Output tokens of language models.")
    last_executed_at: UtcTime | None = Field(description="`startedAt` of the newest execution.")


class SeriesBucket(CamelModel):
    """The executions of a flow that started in an interval."""

    start: UtcTime
    end: UtcTime = Field(description="The start of the next interval.")
    executions: int
    success: int
    error: int
    timeout: int
    cancelled: int
    running: int
    avg_duration_ms: float = Field(description="Mean over the executions that have a duration; 0 if none has.")
    input_tokens: int = Field(description="Input tokens of language models.")
    output_tokens: int = Field(description="Output tokens of language models.")


class StatsSeries(CamelModel):
    """Statistics of a flow over time."""

    flow_id: UUID
    bucket: Interval
    tz: str = Field(description="The time zone of the buckets.")
    buckets: list[SeriesBucket] = Field(description="The oldest first, also those without executions.")
