"""A chat model that accepts malformed tool calls from OpenAI-compatible servers.

Import this module only when a model is needed: importing pydantic-ai takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from httpx2 import Response
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDeltaToolCall, ChoiceDeltaToolCallFunction
from pydantic import ValidationError
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIStreamedResponse

UNNAMED = "unnamed"


class ChatClient(AsyncOpenAI):
    """Reads the parts of streams in a third of the library's time, which is 0.1 ms of CPU time for each token."""

    def _process_response_data(self, *, data: object, cast_to: type[Any], response: Response) -> Any:
        if cast_to is ChatCompletionChunk:
            # The library constructs objects in Python, so that it can accept invalid ones.
            with suppress(ValidationError):
                return ChatCompletionChunk.model_validate(data)
        return super()._process_response_data(data=data, cast_to=cast_to, response=response)


class ChatModel(OpenAIChatModel):
    """Accepts malformed tool calls, so that the agent can report the error to the model."""

    def _validate_completion(self, response: ChatCompletion) -> Any:
        for choice in response.choices or ():
            calls = getattr(choice.message, "tool_calls", None)
            if isinstance(calls, list):
                choice.message.tool_calls = [_complete_call(call, number) for number, call in enumerate(calls)]
        return super()._validate_completion(response)

    @property
    def _streamed_response_cls(self) -> type[OpenAIStreamedResponse]:
        return _ChatStream


@dataclass
class _ChatStream(OpenAIStreamedResponse):
    """As `ChatModel`, for a streamed response."""

    _begun: set[Any] = field(default_factory=set, init=False)
    """The indexes of the calls that have begun."""

    def _map_tool_call_delta(self, choice: Choice) -> Iterable[ModelResponseStreamEvent]:
        calls: Any = choice.delta.tool_calls
        if isinstance(calls, list):
            choice.delta.tool_calls = [self._complete_delta(call, number) for number, call in enumerate(calls)]
        return super()._map_tool_call_delta(choice)

    def _complete_delta(self, call: Any, number: int) -> ChoiceDeltaToolCall:
        """Return the part of a call with members of the right type. The first part of a call has a name."""
        function = getattr(call, "function", None)
        index, id = getattr(call, "index", number), getattr(call, "id", None)
        name, arguments = getattr(function, "name", None), getattr(function, "arguments", None)
        is_new = index not in self._begun
        self._begun.add(index)
        is_valid = all(isinstance(each, str | None) for each in (id, name, arguments))
        if isinstance(call, ChoiceDeltaToolCall) and is_valid and (name or not is_new):
            return call
        return ChoiceDeltaToolCall.model_construct(
            index=index,
            id=id if isinstance(id, str) else None,
            type="function",
            function=ChoiceDeltaToolCallFunction.model_construct(
                name=name if isinstance(name, str) and name else UNNAMED if is_new else None,
                arguments=None if arguments is None else _as_text(arguments),
            ),
        )


def _complete_call(call: Any, number: int) -> Any:
    """Return the call with all members that the API requires, each of the right type."""
    dumped = call if isinstance(call, dict) else call.model_dump(warnings=False) if call is not None else {}
    function = dumped.get("function")
    function = function if isinstance(function, dict) else {}
    name, arguments = function.get("name"), function.get("arguments")
    return {
        "id": dumped["id"] if isinstance(dumped.get("id"), str) else f"call_{number}",
        "type": "function",
        "function": {"name": name if isinstance(name, str) else "", "arguments": _as_text(arguments)},
    }


def _as_text(arguments: Any) -> str:
    """Convert arguments that are not text to JSON that is not an object, so that they are reported as invalid."""
    if isinstance(arguments, str):
        return arguments
    text = json.dumps(arguments)
    return json.dumps(text) if isinstance(arguments, dict) else text
