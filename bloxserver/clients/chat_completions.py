"""A chat model that accepts malformed tool calls from OpenAI-compatible servers.

Import this module only when a model is needed: importing pydantic-ai takes seconds.
"""

from __future__ import annotations

import json
from typing import Any

from openai.types.chat import ChatCompletion
from pydantic_ai.models.openai import OpenAIChatModel


class ChatModel(OpenAIChatModel):
    """Accepts malformed tool calls, so that the agent can report the error to the model."""

    def _validate_completion(self, response: ChatCompletion) -> Any:
        for choice in response.choices or ():
            calls = getattr(choice.message, "tool_calls", None)
            if isinstance(calls, list):
                choice.message.tool_calls = [_complete_call(call, number) for number, call in enumerate(calls)]
        return super()._validate_completion(response)


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
