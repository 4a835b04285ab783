"""The agent: answers a message with a language model, which can call the listener's peers as tools.

A definition cannot name it as a handler. A listener with a prompt and no handler is an agent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, JsonValue, RootModel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticSerializationError, from_json

from bloxserver.blocks.agent_calls import (
    MAX_STATE_BYTES,
    arguments_of,
    prompt_text,
    result_of,
    shortened,
    too_long,
    without_nul,
)
from bloxserver.blocks.agent_guard import RepeatedCalls
from bloxserver.blocks.base import (
    AgentContext,
    Block,
    BlockConfig,
    BlockContext,
    BlockError,
    Conversation,
    ExecutionStopped,
    Tool,
)
from bloxserver.blocks.shapes import object_shape
from bloxserver.blocks.tools import tool_name
from bloxserver.clients.model_errors import ModelError
from bloxserver.raw_json import RawJson, plain

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart, ToolReturnPart
    from pydantic_ai.tools import ToolDefinition

MAX_ANSWER_BYTES = 256 * 1024
"""The limit for the texts and arguments of one answer of the model."""


class AgentPayload(RootModel[JsonValue]):
    """The user message for the model: a text, the text of `{"text": …}`, or any other value as JSON."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Other agents read this schema.
        text = {"type": "string", "description": "The message for the agent."}
        return {"type": "object", "title": "AgentPayload", "properties": {"text": text}, "required": ["text"]}


def _checked_prompt(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("must not be empty; describe the task of the agent")
    return prompt


class AgentConfig(BlockConfig):
    prompt: Annotated[str, AfterValidator(_checked_prompt)] = Field(
        description="The task of the agent. It is the system prompt and is sent unchanged."
    )
    model: str | None = Field(None, min_length=1, max_length=200, description="The model's name. Default: LLM_MODEL.")
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="The sampling temperature. Default: that of the model server.",
    )
    max_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="The maximum tokens of one answer. Default: that of the model server."
    )
    max_calls: int = Field(20, ge=1, le=100, description="The maximum number of requests to the model per message.")
    max_total_tokens: int = Field(
        200_000,
        ge=1,
        le=1_000_000_000,
        description="The number of input and output tokens after which no further request is sent.",
    )
    cache: bool = Field(True, description="Whether an answer may be that of an equal request to the model.")


@dataclass
class _Transcript:
    """The conversation with the model so far, which can be stored."""

    messages: list[ModelMessage]
    calls: int = 0
    tokens: int = 0
    repeated: RepeatedCalls = field(default_factory=RepeatedCalls)

    @classmethod
    def start(cls, payload: JsonValue, prompt: str) -> _Transcript:
        from pydantic_ai.messages import ModelRequest, SystemPromptPart, UserPromptPart

        return cls([ModelRequest([SystemPromptPart(prompt), UserPromptPart(prompt_text(payload))])])

    @classmethod
    def resume(cls, state: Mapping[str, Any]) -> _Transcript:
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        messages = ModelMessagesTypeAdapter.validate_python(state["messages"])
        return cls(messages, state["calls"], state["tokens"], RepeatedCalls(messages))

    @property
    def answer(self) -> ModelResponse | None:
        """The model's last answer, or None if the next message is the model's."""
        from pydantic_ai.messages import ModelResponse

        last = self.messages[-1]
        return last if isinstance(last, ModelResponse) else None

    def state(self) -> RawJson:
        """Return the state to store, as text that is not parsed here. Raises `BlockError` if it cannot be stored."""
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        try:
            dumped = ModelMessagesTypeAdapter.dump_json(self.messages)
        except PydanticSerializationError:
            message = "the model's answer contains half of a surrogate pair"
            raise BlockError("llm_unusable_answer", message) from None
        if len(dumped) > MAX_STATE_BYTES:
            raise BlockError("llm_too_long", too_long("the conversation", len(dumped)), retryable=False)
        messages = without_nul(dumped.decode())
        return RawJson(f'{{"messages": {messages}, "calls": {self.calls}, "tokens": {self.tokens}}}')


async def handle_agent(payload: AgentPayload, config: AgentConfig, context: BlockContext) -> JsonValue:
    """Return the model's last answer as `{"text": …}`.

    The conversation is stored after each answer of the model. After an interruption it continues from there.
    """
    if context.agent is None:
        raise RuntimeError("the context has no agent")
    try:
        await context.agent.models.load(config.model)
    except ModelError as error:
        raise _block_error(error) from None
    state = plain(context.agent.conversation.state)
    if isinstance(state, dict):
        transcript = _Transcript.resume(state)
    else:
        transcript = _Transcript.start(payload.root, config.prompt)
    while True:
        answer = transcript.answer or await _ask(transcript, config, context)
        if not answer.tool_calls:
            return {"text": (answer.text or "").replace("\0", "\ufffd")}
        _check_limits(transcript, config)
        await _call_tools(transcript, answer.tool_calls, context.agent, context)


async def _ask(transcript: _Transcript, config: AgentConfig, context: BlockContext) -> ModelResponse:
    """Request the model's next answer and store it before it is used. Raises `BlockError`."""
    agent = cast(AgentContext, context.agent)
    await context.turn()
    try:
        answer = await agent.models.request(
            transcript.messages,
            model=config.model,
            tools=[_definition(tool) for tool in agent.tools],
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            cache=config.cache,
        )
    except ModelError as error:
        _add_warnings(agent)
        await _record_tokens(agent.conversation, error.input_tokens, error.output_tokens)
        raise _block_error(error) from None
    _add_warnings(agent)
    usage = answer.usage
    await context.turn()
    if (size := _size(answer)) > MAX_ANSWER_BYTES:
        await _record_tokens(agent.conversation, usage.input_tokens, usage.output_tokens)
        message = f"the model's answer has {size} bytes, more than {MAX_ANSWER_BYTES}; set max_tokens, or ask for less"
        raise BlockError("llm_too_long", message, retryable=False)
    answer = _sanitized(answer)
    transcript.messages.append(answer)
    transcript.repeated.count(answer)
    for warning in transcript.repeated.warnings():
        agent.conversation.warn(warning)
    transcript.calls += 1
    transcript.tokens += usage.input_tokens + usage.output_tokens
    try:
        state = transcript.state()
    except BlockError:
        await _record_tokens(agent.conversation, usage.input_tokens, usage.output_tokens)
        raise
    await agent.conversation.keep(state, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    return answer


def _add_warnings(agent: AgentContext) -> None:
    for warning in agent.models.take_warnings():
        agent.conversation.warn(warning)


def _block_error(error: ModelError) -> BlockError:
    if error.ends_execution:
        return ExecutionStopped(error.code, error.message)
    return BlockError(
        error.code,
        error.message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        is_postponed=error.is_postponed,
    )


async def _record_tokens(conversation: Conversation, input_tokens: int, output_tokens: int) -> None:
    """Record the tokens of an answer that is not stored. They are charged all the same."""
    if input_tokens or output_tokens:
        await conversation.keep(conversation.state, input_tokens=input_tokens, output_tokens=output_tokens)


def _check_limits(transcript: _Transcript, config: AgentConfig) -> None:
    """Raise `BlockError` if a limit is reached. The tool calls of the last answer are not made then."""
    if transcript.calls >= config.max_calls:
        message = f"the model has not finished after {transcript.calls} requests (max_calls)"
        raise BlockError("agent_call_limit", message, retryable=False)
    if transcript.tokens >= config.max_total_tokens:
        message = f"the model has not finished after {transcript.tokens} tokens (max_total_tokens)"
        raise BlockError("agent_token_limit", message, retryable=False)
    transcript.repeated.check()


async def _call_tools(
    transcript: _Transcript, calls: Sequence[ToolCallPart], agent: AgentContext, context: BlockContext
) -> None:
    """Make the tool calls of the model's last answer concurrently, and add their results."""
    from pydantic_ai.messages import ModelRequest

    tools = {tool.name: tool for tool in agent.tools}
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_result(call, tools, agent.conversation, f"{transcript.calls}.{number}", context))
                for number, call in enumerate(calls, start=1)
            ]
    except BaseExceptionGroup as failed:
        # The failure of a tool is a result. Any other exception belongs to the engine and is raised unchanged.
        raise failed.exceptions[0] from None
    transcript.messages.append(ModelRequest([task.result() for task in tasks]))


async def _result(
    call: ToolCallPart, tools: Mapping[str, Tool], conversation: Conversation, name: str, context: BlockContext
) -> ToolReturnPart:
    """Return the result of a call for the model. A failure is a result too, so that the model can react to it."""
    from pydantic_ai.messages import ToolReturnPart

    try:
        if (tool := tools.get(call.tool_name)) is None:
            known = ", ".join(tools) or "none"
            raise BlockError("unknown_tool", f"there is no such tool; the tools are: {known}")
        await context.turn()
        given = call.args if isinstance(call.args, str) else json.dumps(call.args or {})
        payload = await arguments_of(given, tool, context.isolated)
        text = await result_of(await conversation.call(tool, payload, name), context.isolated)
    except ExecutionStopped:
        raise
    except BlockError as error:
        text = shortened(f"{error.code}: {error.message}")
        return ToolReturnPart(call.tool_name, text, call.tool_call_id, outcome="failed")
    return ToolReturnPart(call.tool_name, text, call.tool_call_id)


def _size(answer: ModelResponse) -> int:
    """The characters of the texts and arguments of an answer."""
    values = [value for part in answer.parts for value in (getattr(part, "content", None), getattr(part, "args", None))]
    return sum(len(value if isinstance(value, str) else json.dumps(value)) for value in values if value is not None)


def _sanitized(answer: ModelResponse) -> ModelResponse:
    """Return the answer with tool calls that can be stored and sent back to the model, even if they are invalid."""
    from pydantic_ai.messages import ToolCallPart

    parts = list(answer.parts)
    ids: set[str] = set()
    for index, part in enumerate(parts):
        if not isinstance(part, ToolCallPart):
            continue
        call_id = part.tool_call_id
        if not isinstance(call_id, str) or not call_id or call_id in ids:
            call_id = f"call_{index}_{len(ids)}"
        ids.add(call_id)
        name = tool_name(str(part.tool_name or "unnamed"), ())
        arguments = _sanitized_arguments(part.args)
        parts[index] = ToolCallPart(
            name,
            arguments,
            call_id,
            id=part.id,
            provider_name=part.provider_name,
            provider_details=part.provider_details,
        )
    return replace(answer, parts=parts)


def _sanitized_arguments(given: object) -> str | dict[str, Any]:
    """Return valid arguments unchanged, and invalid ones as a text that is not a JSON object."""
    if isinstance(given, dict | str):
        text = given if isinstance(given, str) else json.dumps(given)
        if _is_strict(text) or (isinstance(given, str) and not _is_lenient(text)):
            return given
        return f"not JSON: {text}"
    return json.dumps(given)


def _is_strict(text: str) -> bool:
    try:
        json.dumps(from_json(text), allow_nan=False)
    except ValueError:
        return False
    return True


def _is_lenient(text: str) -> bool:
    """Whether the text parses as JSON, possibly with numbers that JSON does not support."""
    try:
        from_json(text)
    except ValueError:
        return False
    return True


def _definition(tool: Tool) -> ToolDefinition:
    from pydantic_ai.tools import ToolDefinition

    # Strict mode would rewrite the schema for OpenAI only.
    return ToolDefinition(
        name=tool.name, parameters_json_schema=tool.schema, description=tool.description, strict=False
    )


agent = Block(
    name="agent",
    description="Answers with a language model, which can call the listener's peers as tools.",
    payload=AgentPayload,
    config=AgentConfig,
    answer_shape=lambda config, message: object_shape("text"),
    handler=handle_agent,
    example={
        "config": {"prompt": "Summarise what you are given in three sentences.", "temperature": 0},
        "payload": {"text": "Once upon a time …"},
    },
)
