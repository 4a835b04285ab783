"""Requests for chat completions, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import from_json

from bloxserver.api.openai_errors import unsupported
from bloxserver.clients.model_options import ModelOptions
from bloxserver.errors import Unprocessable
from bloxserver.llm.calls import ModelCall

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelRequestPart, ModelResponsePart
    from pydantic_ai.tools import ToolDefinition

MAX_VALUES = 50_000
"""Of JSON in a body: about 5 milliseconds to parse."""
MAX_MESSAGES = 2_000
MAX_TOOLS = 128
IGNORED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Parameters that do not change the response."""
PASSED_ON = ("frequency_penalty", "logit_bias", "presence_penalty", "reasoning_effort", "seed", "verbosity")
"""Parameters that are sent unchanged to providers with OpenAI's API. Other providers reject them."""
WITHOUT_EFFECT: dict[str, JsonValue] = {"n": 1, "logprobs": False, "modalities": ["text"]}
"""Values that other parameters may have, because they are the defaults."""

Json = dict[str, JsonValue]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class _Form(BaseModel):
    """Null is the same as an absent member."""

    model_config = ConfigDict(allow_inf_nan=False, frozen=True)


class _Part(_Form):
    type: str
    text: str | None = None


class _CalledFunction(_Form):
    name: str
    arguments: str


class _ToolCall(_Form):
    id: str
    function: _CalledFunction


class _Message(_Form):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


class _Function(_Form):
    name: Name
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class _Tool(_Form):
    type: str
    function: _Function | None = None


class _NamedFunction(_Form):
    name: str


class _ToolChoice(_Form):
    type: Literal["function"]
    function: _NamedFunction


class _StreamOptions(_Form):
    include_usage: bool | None = None


class _JsonSchema(_Form):
    name: str
    description: str | None = None
    schema_: Json = Field(alias="schema")
    strict: bool | None = None


class _ResponseFormat(_Form):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class ChatRequest(_Form):
    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1, max_length=200)
    messages: list[_Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: list[_Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["auto", "none", "required"] | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    stop: str | list[str] | None = Field(None, max_length=1_000)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(None, max_length=1_000)
    reasoning_effort: str | None = Field(None, max_length=20)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    verbosity: str | None = Field(None, max_length=20)

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def read_json(body: bytes) -> Any:
    """Return the value of a body. Raises `Unprocessable`."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise Unprocessable({"body": f"The body has more than {MAX_VALUES} values"})
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        raise Unprocessable({"body": "The body is not valid JSON"}) from None


def invalid(error: ValidationError) -> Unprocessable:
    """The error of the domain for an invalid body."""
    reasons: dict[str, str] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:100]:
        reasons.setdefault(".".join(["body", *map(str, item["loc"])]), item["msg"])
    return Unprocessable(reasons)


def read_chat_request(body: bytes) -> ChatRequest:
    """Raises `Unprocessable`, and `BadRequest` for a parameter that is not supported."""
    try:
        request = ChatRequest.model_validate(read_json(body))
    except ValidationError as error:
        raise invalid(error) from None
    for name, value in (request.model_extra or {}).items():
        if value is not None and name not in IGNORED and WITHOUT_EFFECT.get(name) != value:
            raise unsupported(name)
    for number, tool in enumerate(request.tools or ()):
        if tool.type != "function" or tool.function is None:
            raise unsupported(f"tools.{number}", f"A tool of the type `{tool.type}`")
    for number, message in enumerate(request.messages):
        for part in message.content if isinstance(message.content, list) else ():
            if part.type not in ("text", "refusal"):
                raise unsupported(f"messages.{number}.content", f"Content of the type `{part.type}`")
    return request


def model_call(request: ChatRequest) -> ModelCall:
    """Return the call of the model. Imports pydantic-ai, so the model must be loaded before."""
    options = ModelOptions(
        top_p=request.top_p,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        tool_choice=_tool_choice(request),
        parallel_tool_calls=request.parallel_tool_calls if request.tools else None,
        openai_parameters=_openai_parameters(request),
        may_end_early=True,
    )
    return ModelCall(
        list(_messages(request.messages)),
        request.model,
        list(_tools(request.tools or ())),
        request.temperature,
        request.max_completion_tokens or request.max_tokens,
        options=options,
    )


def _tool_choice(request: ChatRequest) -> Literal["auto", "none", "required"] | tuple[str, ...] | None:
    choice = request.tool_choice
    return (choice.function.name,) if isinstance(choice, _ToolChoice) else choice


def _openai_parameters(request: ChatRequest) -> dict[str, Any]:
    given = {name: value for name in PASSED_ON if (value := getattr(request, name)) is not None}
    if request.response_format is not None and request.response_format.type != "text":
        given["response_format"] = request.response_format.model_dump(by_alias=True, exclude_none=True)
    return given


def _tools(tools: Sequence[_Tool]) -> Iterator[ToolDefinition]:
    from pydantic_ai.tools import ToolDefinition

    for tool in tools:
        if (function := tool.function) is not None:
            schema = function.parameters or {"type": "object", "properties": {}}
            yield ToolDefinition(
                name=function.name,
                description=function.description,
                parameters_json_schema=schema,
                strict=function.strict,
            )


def _messages(messages: Sequence[_Message]) -> Iterator[ModelMessage]:
    """Convert the messages. Those between two responses of the model are one request."""
    from pydantic_ai.messages import ModelRequest, ModelResponse

    names: dict[str, str] = {}
    parts: list[ModelRequestPart] = []
    for message in messages:
        if message.role != "assistant":
            parts.append(_request_part(message, names))
            continue
        if parts:
            yield ModelRequest(parts)
            parts = []
        names |= {call.id: call.function.name for call in message.tool_calls or ()}
        yield ModelResponse(list(_response_parts(message)))
    if parts:
        yield ModelRequest(parts)


def _request_part(message: _Message, names: dict[str, str]) -> ModelRequestPart:
    from pydantic_ai.messages import SystemPromptPart, ToolReturnPart, UserPromptPart

    if message.role == "tool":
        id = message.tool_call_id or ""
        return ToolReturnPart(names.get(id, ""), _text(message), tool_call_id=id)
    if message.role == "user":
        return UserPromptPart(_text(message))
    return SystemPromptPart(_text(message))


def _response_parts(message: _Message) -> Iterator[ModelResponsePart]:
    from pydantic_ai.messages import TextPart, ToolCallPart

    if (text := _text(message)) or not message.tool_calls:
        yield TextPart(text)
    for call in message.tool_calls or ():
        yield ToolCallPart(call.function.name, call.function.arguments, tool_call_id=call.id)


def _text(message: _Message) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text or "" for part in message.content)
    return message.content or ""
