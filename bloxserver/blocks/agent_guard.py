"""Finds agents that repeat a tool call with equal arguments. The model gets no message about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bloxserver.blocks.base import BlockError, StepWarning
from bloxserver.raw_json import is_large

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

WARNED_CALLS = 3
MAX_CALLS = 5
"""Equal calls of a conversation. The last one is not made."""


class RepeatedCalls:
    """Counts the calls of a conversation by their tool and arguments."""

    def __init__(self, messages: Iterable[ModelMessage] = ()) -> None:
        self._numbers: Counter[tuple[str, str]] = Counter()
        for message in messages:
            self.count(message)

    def count(self, message: ModelMessage) -> None:
        """Count the calls of a message, in the order in which the messages were added."""
        from pydantic_ai.messages import ToolCallPart

        calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
        self._numbers.update((call.tool_name, canonical(call.args)) for call in calls)

    def warnings(self) -> list[StepWarning]:
        """One warning for each tool that was called `WARNED_CALLS` times with equal arguments."""
        tools = sorted({tool for (tool, _), number in self._numbers.items() if number >= WARNED_CALLS})
        return [StepWarning("agent_repeated_call", _message(tool, WARNED_CALLS)) for tool in tools]

    def check(self) -> None:
        """Raise `BlockError` if a call was made `MAX_CALLS` times."""
        for (tool, _), number in self._numbers.items():
            if number >= MAX_CALLS:
                raise BlockError("agent_repeated_call", _message(tool, number), retryable=False)


def _message(tool: str, number: int) -> str:
    return f"the model called the tool {tool} {number} times with equal arguments"


def canonical(arguments: str | Mapping[str, Any] | None) -> str:
    """The same text for equal arguments. Texts that are large or not JSON are equal only if they are the same."""
    given = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    if is_large(given):
        return given
    try:
        value = json.loads(given or "{}", parse_float=_number)
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return given


def _number(text: str) -> float | int:
    """1.0 is equal to 1."""
    value = float(text)
    return int(value) if value.is_integer() else value
