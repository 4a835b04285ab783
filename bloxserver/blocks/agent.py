"""The agent: answers a message by talking to a language model, which may call the listener's peers.

It has no name that a definition could give: a listener with a prompt and no handler is one.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, JsonValue, RootModel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticSerializationError, from_json

from bloxserver.blocks.base import AgentContext, Block, BlockConfig, BlockContext, BlockError, Conversation, Tool
from bloxserver.blocks.json_values import storable
from bloxserver.blocks.tools import INPUT, tool_name, unwanted
from bloxserver.clients.llm import ModelError

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart, ToolReturnPart
    from pydantic_ai.tools import ToolDefinition

MAX_RESULT_BYTES = 200_000
"""Of what a tool answers, as the model reads it."""
MAX_STATE_BYTES = 2 * 1024 * 1024
MAX_REASON = 200
NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
"""In JSON; databases refuse it."""


class AgentPayload(RootModel[JsonValue]):
    """What the model is sent: a text, the text of `{"text": …}`, or any other JSON as JSON."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Other agents read it to know what to send.
        text = {"type": "string", "description": "What to tell the agent."}
        return {"type": "object", "title": "AgentPayload", "properties": {"text": text}, "required": ["text"]}


def _checked_prompt(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("it says what the agent is to do, and may not be empty")
    return prompt


class AgentConfig(BlockConfig):
    prompt: Annotated[str, AfterValidator(_checked_prompt)] = Field(
        description="What the agent is to do: the system prompt, sent as it is."
    )
    model: str | None = Field(None, min_length=1, max_length=200, description="The model's name; LLM_MODEL unless set.")
    temperature: float | None = Field(
        None, ge=0, le=2, allow_inf_nan=False, description="From 0, steady, to 2; the server's default unless set."
    )
    max_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="How long one answer of the model may be; unset, the server decides."
    )
    max_calls: int = Field(20, ge=1, le=100, description="How often the model may be asked for one message.")
    max_total_tokens: int = Field(
        200_000,
        ge=1,
        le=1_000_000_000,
        description="Tokens, read and written, after which it is not asked again.",
    )


@dataclass
class _Talk:
    """What was said so far, in a form that outlives the worker."""

    messages: list[ModelMessage]
    calls: int = 0
    tokens: int = 0

    @classmethod
    def begun(cls, payload: JsonValue, prompt: str) -> _Talk:
        from pydantic_ai.messages import ModelRequest, SystemPromptPart, UserPromptPart

        told = payload["text"] if isinstance(payload, dict) and payload.keys() == {"text"} else payload
        asked = UserPromptPart(_as_text(told if isinstance(told, str) else payload))
        return cls([ModelRequest([SystemPromptPart(prompt), asked])])

    @classmethod
    def resumed(cls, state: Mapping[str, Any]) -> _Talk:
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        messages = ModelMessagesTypeAdapter.validate_python(state["messages"])
        return cls(messages, state["calls"], state["tokens"])

    @property
    def answer(self) -> ModelResponse | None:
        """What the model said last, unless it is its turn."""
        from pydantic_ai.messages import ModelResponse

        last = self.messages[-1]
        return last if isinstance(last, ModelResponse) else None

    def state(self) -> JsonValue:
        """Raises `BlockError` for what cannot be kept."""
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        try:
            dumped = ModelMessagesTypeAdapter.dump_json(self.messages)
        except PydanticSerializationError:
            raise BlockError("llm_unusable_answer", "the model's answer holds half a character") from None
        if len(dumped) > MAX_STATE_BYTES:
            message = f"the conversation is longer than {MAX_STATE_BYTES} bytes"
            raise BlockError("llm_too_long", message, retryable=False)
        return {"messages": from_json(_without_nul(dumped.decode())), "calls": self.calls, "tokens": self.tokens}


async def handle_agent(payload: AgentPayload, config: AgentConfig, context: BlockContext) -> JsonValue:
    """`{"text": …}`: what the model said last, always at the same place.

    The conversation is kept after each answer of the model, and goes on from there after an interruption.
    """
    if context.agent is None:
        raise RuntimeError("an agent needs the agent's context")
    try:
        await context.agent.models.load(config.model)
    except ModelError as error:
        raise _refused(error) from None
    state = context.agent.conversation.state
    talk = _Talk.resumed(state) if isinstance(state, dict) else _Talk.begun(payload.root, config.prompt)
    while True:
        answer = talk.answer or await _ask(talk, config, context.agent)
        if not answer.tool_calls:
            return {"text": (answer.text or "").replace("\0", "\ufffd")}
        _check_bounds(talk, config)
        await _call_tools(talk, answer.tool_calls, context.agent)


async def _ask(talk: _Talk, config: AgentConfig, agent: AgentContext) -> ModelResponse:
    """The model's next answer, kept before anything comes of it. Raises `BlockError`."""
    try:
        answer = await agent.models.request(
            talk.messages,
            model=config.model,
            tools=[_definition(tool) for tool in agent.tools],
            temperature=config.temperature,
            max_tokens=config.max_tokens,
        )
    except ModelError as error:
        await _count(agent.conversation, error.input_tokens, error.output_tokens)
        raise _refused(error) from None
    usage = answer.usage
    answer = _usable(answer)
    talk.messages.append(answer)
    talk.calls += 1
    talk.tokens += usage.input_tokens + usage.output_tokens
    try:
        state = talk.state()
    except BlockError:
        await _count(agent.conversation, usage.input_tokens, usage.output_tokens)
        raise
    await agent.conversation.keep(state, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    return answer


def _refused(error: ModelError) -> BlockError:
    return BlockError(error.code, error.message, retryable=error.retryable, retry_after=error.retry_after)


async def _count(conversation: Conversation, input_tokens: int, output_tokens: int) -> None:
    """Tokens of an answer that is not kept: it was paid for all the same."""
    if input_tokens or output_tokens:
        await conversation.keep(conversation.state, input_tokens=input_tokens, output_tokens=output_tokens)


def _check_bounds(talk: _Talk, config: AgentConfig) -> None:
    """Raise `BlockError` where the model must not be asked again; the calls that it wants are not made then."""
    if talk.calls >= config.max_calls:
        message = f"the model wants to go on after {talk.calls} answers (max_calls)"
        raise BlockError("agent_call_limit", message, retryable=False)
    if talk.tokens >= config.max_total_tokens:
        message = f"the model wants to go on after {talk.tokens} tokens (max_total_tokens)"
        raise BlockError("agent_token_limit", message, retryable=False)


async def _call_tools(talk: _Talk, calls: Sequence[ToolCallPart], agent: AgentContext) -> None:
    """Make the calls of the model's last answer, all at once, and add what comes of them."""
    from pydantic_ai.messages import ModelRequest

    tools = {tool.name: tool for tool in agent.tools}
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_result(call, tools, agent.conversation, f"{talk.calls}.{number}"))
                for number, call in enumerate(calls, start=1)
            ]
    except BaseExceptionGroup as failed:
        # What is no tool's failure is the engine's own affair: it gets it as it was raised.
        raise failed.exceptions[0] from None
    talk.messages.append(ModelRequest([task.result() for task in tasks]))


async def _result(
    call: ToolCallPart, tools: Mapping[str, Tool], conversation: Conversation, name: str
) -> ToolReturnPart:
    """The result of a call for the model; a failure too, so that it can correct the call or do without."""
    from pydantic_ai.messages import ToolReturnPart

    try:
        tool, payload = _understood(call, tools)
        text = _as_text(await conversation.call(tool, payload, name))
    except BlockError as error:
        text = _shortened(f"{error.code}: {error.message}")
        return ToolReturnPart(call.tool_name, text, call.tool_call_id, outcome="failed")
    return ToolReturnPart(call.tool_name, _shortened(text), call.tool_call_id)


def _understood(call: ToolCallPart, tools: Mapping[str, Tool]) -> tuple[Tool, JsonValue]:
    """The tool and the payload that the model means. Raises `BlockError` for the model to read."""
    tool = tools.get(call.tool_name)
    if tool is None:
        known = ", ".join(tools) or "none"
        raise BlockError("unknown_tool", f"there is no such tool; the tools are: {known}")
    given = call.args if isinstance(call.args, str) else json.dumps(call.args or {})
    try:
        arguments = storable(from_json(_without_nul(given or "{}"), allow_inf_nan=False), max_bytes=MAX_STATE_BYTES)
    except ValueError as error:
        raise _invalid(f"the arguments are not valid JSON: {str(error)[:MAX_REASON]}") from None
    if not isinstance(arguments, dict):
        raise _invalid("the arguments must be a JSON object")
    if names := unwanted(tool, arguments):
        takes = ", ".join(tool.schema["properties"]) or "no arguments"
        shown = ", ".join(names)[:MAX_REASON]
        raise _invalid(f"leave out what this tool does not let you choose: {shown}; it takes {takes}")
    if not tool.wrapped:
        return tool, arguments
    if INPUT not in arguments:
        raise _invalid(f'the arguments must have "{INPUT}"')
    return tool, arguments[INPUT]


def _invalid(reason: str) -> BlockError:
    return BlockError("invalid_arguments", reason)


def _usable(answer: ModelResponse) -> ModelResponse:
    """The answer with calls that can be stored and sent back to the model, whatever is wrong with them."""
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
        arguments = _usable_arguments(part.args)
        parts[index] = ToolCallPart(
            name,
            arguments,
            call_id,
            id=part.id,
            provider_name=part.provider_name,
            provider_details=part.provider_details,
        )
    return replace(answer, parts=parts)


def _usable_arguments(given: object) -> str | dict[str, Any]:
    """Arguments as they are where they are a text or a JSON object, else a text that is not a JSON object either."""
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
    """Whether it is read as JSON with numbers that JSON does not have, and cannot be sent again."""
    try:
        from_json(text)
    except ValueError:
        return False
    return True


def _as_text(value: JsonValue) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _shortened(text: str) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_RESULT_BYTES:
        return text
    kept = encoded[:MAX_RESULT_BYTES].decode(errors="ignore")
    return f"{kept}\n[cut here: the first {MAX_RESULT_BYTES} of {len(encoded)} bytes]"


def _without_nul(text: str) -> str:
    return NUL.sub(r"\1\\ufffd", text)


def _definition(tool: Tool) -> ToolDefinition:
    from pydantic_ai.tools import ToolDefinition

    # Strict would rewrite the schema for OpenAI alone.
    return ToolDefinition(
        name=tool.name, parameters_json_schema=tool.schema, description=tool.description, strict=False
    )


agent = Block(
    name="agent",
    description="Answers by a language model, which may call the listener's peers as its tools.",
    payload=AgentPayload,
    config=AgentConfig,
    handler=handle_agent,
    example={
        "config": {"prompt": "Summarise what you are given in three sentences.", "temperature": 0},
        "payload": {"text": "Once upon a time …"},
    },
)
