"""CEL expressions over a message, like `payload.score > 3`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel import type_check
from bloxserver.blocks.cel.nodes import Node
from bloxserver.blocks.cel.syntax import parse
from bloxserver.blocks.cel.values import Budget, CostLimitExceeded, EvaluationError, Run, to_json_value
from bloxserver.blocks.json_values import storable
from bloxserver.blocks.templates import ROOTS

MAX_STEPS = 300_000
MAX_QUOTED = 200


@dataclass(frozen=True)
class Expression:
    """A compiled expression. `text` is its source; `real` is as in `Run`."""

    text: str
    program: Node
    real: bool = False

    def evaluate(self, scope: Mapping[str, JsonValue]) -> JsonValue:
        """Return the value for `scope`: storable JSON of at most 1 MiB. Timestamps become ISO 8601 text, durations
        become seconds, and types become their names.

        Raises `BlockError`, which is not retryable: `expression_failed`, or after about 0.2 seconds
        `expression_too_costly`, because long evaluations delay other executions.
        """
        run = Run(dict(scope), Budget(MAX_STEPS), self.real)
        try:
            return storable(self.program.evaluate(run), convert=to_json_value)
        except EvaluationError as failure:
            raise self._error("expression_failed", str(failure)) from None
        except CostLimitExceeded:
            raise self._error("expression_too_costly", "the evaluation takes too many steps") from None
        except ValueError as error:
            raise self._error("expression_failed", f"the value cannot be stored: {error}") from None

    def holds(self, scope: Mapping[str, JsonValue]) -> bool:
        """Return whether the expression is true for `scope`. Raises `BlockError`, also for other values."""
        value = self.evaluate(scope)
        if not isinstance(value, bool):
            raise self._error("expression_failed", "the value is neither true nor false")
        return value

    def _error(self, code: str, reason: str) -> BlockError:
        text = self.text if len(self.text) <= MAX_QUOTED else f"{self.text[:MAX_QUOTED]}…"
        return BlockError(code, f"{text}: {reason}", retryable=False)


@lru_cache(maxsize=256)
def compile_expression(text: str, names: frozenset[str] = ROOTS) -> Expression:
    """Compile an expression over `names`. Compiled expressions are cached, so that blocks can call this per message.

    Raises `ValueError` for a syntax error, an unknown name or function, and for an expression that is too long or too
    deeply nested.
    """
    return Expression(text, parse(text, names))


def _checked(text: str) -> str:
    type_check.check(compile_expression(text).program)
    return text


def _checked_condition(text: str) -> str:
    type_check.check_condition(compile_expression(text).program)
    return text


ExpressionText = Annotated[str, AfterValidator(_checked)]
"""For configs: an expression over `payload`."""
ConditionText = Annotated[str, AfterValidator(_checked_condition)]
"""For configs: an expression over `payload` whose value can be true or false."""
