"""CEL expressions over a message, like `payload.score > 3`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel import kinds
from bloxserver.blocks.cel.nodes import Node
from bloxserver.blocks.cel.syntax import parse
from bloxserver.blocks.cel.values import Budget, CostLimitExceeded, Failure, Run, plain
from bloxserver.blocks.json_values import storable
from bloxserver.blocks.templates import ROOTS

MAX_STEPS = 300_000
MAX_QUOTED = 200


@dataclass(frozen=True)
class Expression:
    """A compiled expression. `text` is as the definition has it; `real` as in `Run`."""

    text: str
    program: Node
    real: bool = False

    def evaluate(self, scope: Mapping[str, JsonValue]) -> JsonValue:
        """Its value for `scope`: JSON that can be stored, at most 1 MiB. Timestamps become ISO 8601 text, durations
        seconds, types their names.

        Raises `BlockError`, which no retry can correct: `expression_failed`, or `expression_too_costly` for what would
        delay other executions; it is raised after about 0.2 seconds.
        """
        run = Run(dict(scope), Budget(MAX_STEPS), self.real)
        try:
            return storable(self.program.evaluate(run), convert=plain)
        except Failure as failure:
            raise self._error("expression_failed", str(failure)) from None
        except CostLimitExceeded:
            raise self._error("expression_too_costly", "it goes through too many values") from None
        except ValueError as error:
            raise self._error("expression_failed", f"its value cannot be stored: {error}") from None

    def holds(self, scope: Mapping[str, JsonValue]) -> bool:
        """Whether it is true of `scope`. Raises `BlockError`, also where it is neither true nor false."""
        value = self.evaluate(scope)
        if not isinstance(value, bool):
            raise self._error("expression_failed", "it is neither true nor false")
        return value

    def _error(self, code: str, reason: str) -> BlockError:
        text = self.text if len(self.text) <= MAX_QUOTED else f"{self.text[:MAX_QUOTED]}…"
        return BlockError(code, f"{text}: {reason}", retryable=False)


@lru_cache(maxsize=256)
def compile_expression(text: str, names: frozenset[str] = ROOTS) -> Expression:
    """Raises `ValueError` for what is no expression over `names`: the syntax, an unknown name or function, too long,
    too deep. What was compiled last is kept, so that blocks may ask again for each message.
    """
    return Expression(text, parse(text, names))


def _checked(text: str) -> str:
    kinds.check(compile_expression(text).program)
    return text


def _checked_condition(text: str) -> str:
    kinds.check_condition(compile_expression(text).program)
    return text


ExpressionText = Annotated[str, AfterValidator(_checked)]
"""For configs: the text of an expression over `payload`, which may have a value."""
ConditionText = Annotated[str, AfterValidator(_checked_condition)]
"""For configs: the text of one that may be true or false."""
