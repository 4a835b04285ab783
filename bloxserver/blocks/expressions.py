"""CEL expressions: what a definition says about a message in a word, like `payload.score > 3`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cel
from pydantic import JsonValue

from bloxserver.blocks.base import BlockError


@dataclass(frozen=True)
class Expression:
    """A compiled expression. `text` is as the definition has it."""

    text: str
    program: Any

    def evaluate(self, scope: Mapping[str, JsonValue]) -> JsonValue:
        """What it says of `scope`. Raises `BlockError` (`expression_failed`), which no retry can mend."""
        try:
            value: JsonValue = self.program.execute(dict(scope))
        except Exception as error:
            raise BlockError("expression_failed", f"{self.text}: {error}", retryable=False) from None
        return value

    def holds(self, scope: Mapping[str, JsonValue]) -> bool:
        """Whether it is true of `scope`. Raises `BlockError`, also where it is neither true nor false."""
        value = self.evaluate(scope)
        if not isinstance(value, bool):
            raise BlockError("expression_failed", f"{self.text} is neither true nor false", retryable=False)
        return value


def compile_expression(text: str, names: frozenset[str] = frozenset({"payload"})) -> Expression:
    """Raises `ValueError` for what is no expression over `names`."""
    return Expression(text, cel.compile(text))
