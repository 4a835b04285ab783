"""CEL expressions over a message, like `payload.score > 3`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, JsonValue, ValidationInfo

from bloxserver.blocks.base import CHECKED, BlockError
from bloxserver.blocks.cel import type_check
from bloxserver.blocks.cel.function import Function
from bloxserver.blocks.cel.functions import FUNCTIONS
from bloxserver.blocks.cel.nodes import Node
from bloxserver.blocks.cel.syntax import MAX_CHARACTERS, parse
from bloxserver.blocks.cel.values import Budget, EvaluationError, Run, kind_of, to_json_value
from bloxserver.blocks.checking import known_names
from bloxserver.blocks.json_values import MAX_BYTES, storable
from bloxserver.blocks.names import MESSAGE_ROOTS, ROOTS

MAX_QUOTED = 200
MAX_ITEMS_BYTES = 16 * 1024 * 1024
"""More than the largest message, so that a list in it can be used as it is."""
MAX_COMPILED = 512
STEPS_PER_EVALUATION = 50
STEPS_PER_CHARACTER = 6
"""The steps to compile a character."""


@dataclass(frozen=True)
class Language:
    """The functions that an expression can call, and whether it can have `**`, `^` and `//` as operators.

    The evaluation of arithmetic is `real`, see `Run`.
    """

    name: str
    functions: Mapping[str, Function] = field(repr=False, compare=False)
    is_arithmetic: bool = False


CEL = Language("cel", FUNCTIONS)


@dataclass(frozen=True)
class Expression:
    """A compiled expression. `text` is its source, `names` are the names that it can refer to."""

    text: str
    names: frozenset[str]
    program: Node
    language: Language = CEL

    def evaluate(self, scope: Mapping[str, JsonValue], budget: Budget, max_bytes: int = MAX_BYTES) -> JsonValue:
        """Return the value for `scope`: storable JSON of at most `max_bytes`. Timestamps become ISO 8601 text,
        durations become seconds, and types become their names.

        Raises `BlockError` (`expression_failed`), which is not retryable, and `CostLimitExceeded`.
        """
        budget.consume(STEPS_PER_EVALUATION + self.program.size)
        run = Run(dict(scope), budget, self.language.is_arithmetic)
        try:
            value = self.program.evaluate(run)
            return storable(value, max_bytes=max_bytes, convert=to_json_value, budget=budget)
        except EvaluationError as failure:
            raise _error(self.text, str(failure)) from None
        except ValueError as error:
            raise _error(self.text, f"the value cannot be stored: {error}") from None

    def holds(self, scope: Mapping[str, JsonValue], budget: Budget) -> bool:
        """Return whether the expression is true for `scope`. Raises like `evaluate`, also for other values."""
        value = self.evaluate(scope, budget)
        if not isinstance(value, bool):
            raise _error(self.text, "the value is neither true nor false")
        return value


_compiled: dict[tuple[str, frozenset[str], Language], Expression] = {}
"""The expressions that were compiled last."""


def compile_expression(
    text: str, names: frozenset[str] = ROOTS, language: Language = CEL, budget: Budget | None = None
) -> Expression:
    """Compile an expression over `names`. Compiled expressions are cached, so that blocks can call this per message.

    Raises `ValueError` for a syntax error, an unknown name or function, and for an expression that is too long or too
    deeply nested; with `budget`, `CostLimitExceeded`.
    """
    key = (text, names, language)
    if known := _compiled.get(key):
        return known
    if budget is not None:
        budget.consume(STEPS_PER_CHARACTER * min(len(text), MAX_CHARACTERS))
    program = parse(text, names, language.functions, arithmetic=language.is_arithmetic, budget=budget)
    if len(_compiled) >= MAX_COMPILED:
        _compiled.pop(next(iter(_compiled)), None)
    _compiled[key] = compiled = Expression(text, names, program, language)
    return compiled


def evaluate(
    text: str,
    scope: Mapping[str, JsonValue],
    budget: Budget,
    names: frozenset[str] = ROOTS,
    language: Language = CEL,
) -> JsonValue:
    """Compile an expression and return its value. Raises `BlockError` (`expression_failed`), which is not retryable,
    and `CostLimitExceeded`.
    """
    return _compile(text, names, language, budget).evaluate(scope, budget)


def holds(text: str, scope: Mapping[str, JsonValue], budget: Budget, names: frozenset[str] = ROOTS) -> bool:
    """Compile a condition and return whether it is true. Raises like `evaluate`."""
    return _compile(text, names, CEL, budget).holds(scope, budget)


def evaluate_items(text: str, scope: Mapping[str, JsonValue], budget: Budget) -> list[JsonValue]:
    """Return the list that the `for_each` of a listener gives, of at most `MAX_ITEMS_BYTES`.

    Raises like `evaluate`, and `BlockError` (`for_each_not_a_list`), which is not retryable.
    """
    value = _compile(text, MESSAGE_ROOTS, CEL, budget).evaluate(scope, budget, MAX_ITEMS_BYTES)
    if not isinstance(value, list):
        message = f"{_shown(text)}: the value is {kind_of(value)}, not a list"
        raise BlockError("for_each_not_a_list", message, retryable=False)
    return value


def check_items(text: str) -> None:
    """Raise `ValueError` for a `for_each` that is invalid or can never be a list."""
    type_check.check_list(compile_expression(text, MESSAGE_ROOTS).program)


def _compile(text: str, names: frozenset[str], language: Language, budget: Budget) -> Expression:
    try:
        return compile_expression(text, names, language, budget)
    except ValueError as error:
        raise _error(text, str(error)) from None


def _error(text: str, reason: str) -> BlockError:
    return BlockError("expression_failed", f"{_shown(text)}: {reason}", retryable=False)


def _shown(text: str) -> str:
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def _checked(text: str, info: ValidationInfo) -> str:
    if info.context != CHECKED:
        type_check.check(compile_expression(text, known_names()).program)
    return text


def _checked_condition(text: str, info: ValidationInfo) -> str:
    if info.context != CHECKED:
        type_check.check_condition(compile_expression(text, known_names()).program)
    return text


ExpressionText = Annotated[str, AfterValidator(_checked)]
"""For configs: an expression over `ROOTS`."""
ConditionText = Annotated[str, AfterValidator(_checked_condition)]
"""For configs: an expression over `ROOTS` whose value can be true or false."""
