"""Answers of servers with OpenAI's API whose calls of tools are not as the API has them.

Imported when a model is first needed, since pydantic-ai takes seconds.
"""

from __future__ import annotations

import json
from typing import Any

from openai.types.chat import ChatCompletion
from pydantic_ai.models.openai import OpenAIChatModel


class ChatModel(OpenAIChatModel):
    """Accepts any call of a tool: the agent reports to the model what is wrong with it."""

    def _validate_completion(self, response: ChatCompletion) -> Any:
        for choice in response.choices or ():
            calls = getattr(choice.message, "tool_calls", None)
            if isinstance(calls, list):
                choice.message.tool_calls = [_completed(call, number) for number, call in enumerate(calls)]
        return super()._validate_completion(response)


def _completed(call: Any, number: int) -> Any:
    """The call with all members that the API requires, each of its type."""
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
    """Arguments that are not a text, as JSON that is no object: they are not taken for valid ones."""
    if isinstance(arguments, str):
        return arguments
    text = json.dumps(arguments)
    return json.dumps(text) if isinstance(arguments, dict) else text
