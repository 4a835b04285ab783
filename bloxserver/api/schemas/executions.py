from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BeforeValidator, Field, Json

from bloxserver.api.large_values import LongText
from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.item_keys import index_in_key
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import ExecutionStatus, InputEncoding, StepStatus, TriggerType

COST = (
    "The cost of the calls of language models in US dollars, without calls whose price is unknown; null if no price is "
    "known. It includes a call within a second after the call has ended."
)


class ExecutionSummary(CamelModel):
    """An execution as an item of a list."""

    id: UUID
    status: ExecutionStatus
    trigger_type: TriggerType
    started_at: UtcTime = Field(description="When the execution was accepted.")
    duration_ms: int | None = Field(
        description="From `startedAt` to `completedAt`, in milliseconds; null until it ends."
    )
    filtered: bool = Field(
        description="Whether the execution succeeded, and no condition chose a listener for any of its outputs."
    )
    cost_usd: float | None = Field(description=COST)


class FlowExecutionSummary(ExecutionSummary):
    """An execution as an item of a list over several flows."""

    flow_id: UUID
    flow_name: str


class ExecutionOutline(ExecutionSummary):
    """An execution without its payloads."""

    flow_id: UUID
    flow_version: int | None = Field(description="The version of the flow's definition that the execution runs.")
    trigger_id: UUID | None = Field(description="The trigger that started it; null for a manual run.")
    retry_of: UUID | None = Field(description="The execution that this execution retries.")
    parent_id: UUID | None = Field(description="The execution that called this execution.")
    picked_up_at: UtcTime | None = Field(description="When a worker claimed it; null while it waits for a worker.")
    completed_at: UtcTime | None = Field(description="When the execution ended; null until then.")
    error_message: str | None = Field(description="Why the execution failed.")
    input_encoding: InputEncoding = Field(
        description="`text`: `inputPayload` is the text that was received. `data-url`: it is a `data:` URL (RFC 2397)."
    )
    input_tokens: int = Field(description="Input tokens of language models.")
    output_tokens: int = Field(description="Output tokens of language models.")


class Execution(ExecutionOutline):
    """A run of a flow."""

    input_payload: LongText | None = Field(description="The input, usually JSON.")
    output_payload: LongText | None = Field(description="The output, usually JSON; null if there is none.")


class AwaitedExecution(Execution):
    """The response to a request with `?wait`. `status` shows whether the execution has ended."""

    execution_id: UUID = Field(description="The same as `id`.")
    message: str


class StepWarning(CamelModel):
    code: str = Field(description="Stable, in snake_case.")
    message: str


def _index(value: object) -> object:
    """Return the position of an item, which is the end of the key of its step."""
    return index_in_key(value) if isinstance(value, str) else value


class AnsweredBy(CamelModel):
    """The client whose call of `resume.NAME.url` a step has answered with."""

    address: str | None = Field(description="The address of the client.")
    user_agent: str | None = Field(description="The header `User-Agent` of the call.")
    name: str | None = Field(description="The name that the person entered. It is not verified.")
    answered_at: UtcTime = Field(description="When the call was received. The wait may have begun later.")


class StepOutline(CamelModel):
    """A step without its payloads."""

    id: UUID
    parent_id: UUID | None = Field(
        description="The step whose answer or error this step handles, the agent's step that called this tool, or the "
        "step of the loop whose item this step handles; null for the entry. For a join, the last step whose message "
        "arrived, or with `any` the first one."
    )
    item_index: Annotated[int | None, BeforeValidator(_index)] = Field(
        description="The position of the item that this step of a loop handles, from 0; null for all other steps."
    )
    listener: str = Field(description="The listener's name.")
    handler: str | None = Field(description="The name of the block that handles the message.")
    status: StepStatus
    attempt: int = Field(description="The number of the latest attempt, from 1.")
    copied: bool = Field(description="Whether the step was copied from the execution that this execution retries.")
    error_code: str | None = Field(description="Stable, in snake_case.")
    error_message: str | None = Field(description="Why the latest attempt failed, or why the step was cancelled.")
    routed_to: list[str] | None = Field(
        description="The peers that the block selected for its answer, or the joins that received its error."
    )
    called_execution_id: UUID | None = Field(description="The called execution, whose output is the step's answer.")
    started_at: UtcTime
    completed_at: UtcTime | None
    resumes_at: UtcTime | None = Field(description="When a waiting or retrying step continues.")
    duration_ms: int | None
    input_tokens: int = Field(description="Input tokens of language models.")
    output_tokens: int = Field(description="Output tokens of language models.")
    cost_usd: float | None = Field(description=COST)
    warnings: list[StepWarning] = Field(description="Problems that did not end the step.")
    answered_by: AnsweredBy | None = Field(description="Who resumed a `wait.webhook`; null for other steps.")


class Step(StepOutline):
    """The handling of one message by one listener."""

    input_payload: LongText | None = Field(description="The message, as JSON.")
    output_payload: LongText | None = Field(description="The answer, as JSON.")
    payloads_omitted: bool = Field(
        description="Whether both payloads were left out, because the payloads of the page would exceed 4 MiB. "
        "The first step of a page has its payloads: request it with `page_size=1`."
    )


class ExecutionEvent(CamelModel):
    """A Server-Sent Event with the execution: the first event of a stream, and the last once the execution ended."""

    event: Literal["execution"]
    id: Literal["end"] | None = Field(None, description="`end` on the last event; absent on the first.")
    data: Json[ExecutionOutline]


class StepEvent(CamelModel):
    """A Server-Sent Event with a step that is new or has changed."""

    event: Literal["step"]
    id: str | None = Field(
        None,
        pattern="^[0-9]+$",
        description="The position in the stream, for `Last-Event-ID`. If several steps changed at once, only the last "
        "of their events has it.",
    )
    data: Json[StepOutline]


class AgentText(CamelModel):
    """The next part of the text that a language model writes for an agent."""

    step_id: UUID = Field(description="The agent's step. Its `step` event may follow later.")
    listener: str = Field(description="The agent's name.")
    attempt: int = Field(description="The number of the attempt, from 1. A new attempt may repeat an answer.")
    answer: int = Field(description="The number of the model's answer in the conversation, from 1.")
    offset: int = Field(
        description="The number of characters of the answer that were sent before this part. 0 begins the answer."
    )
    text: str


class AgentTextEvent(CamelModel):
    """A Server-Sent Event with a part of an agent's text, which is not stored yet."""

    event: Literal["agent.text"]
    id: None = Field(None, description="Absent.")
    data: Json[AgentText]


class RunRequest(RequestModel):
    """The input of a manual run."""

    input_payload: Any = Field(
        None, description="Text, or any JSON value: the input of the entry listener.", examples=[{"number": 17}]
    )
