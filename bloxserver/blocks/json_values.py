"""JSON values that every database and every later reader accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.values import CHARACTERS_PER_STEP, Budget, CostLimitExceeded

MAX_BYTES = 1024 * 1024
MAX_ANSWER_BYTES = 8 * MAX_BYTES
"""More than the largest body of a response, so that a block can answer with it."""
MAX_DEPTH = 64
MIN_INT = -(2**63)
MAX_INT = 2**64 - 1
MAX_INDEX_DIGITS = 9
STEPS_PER_VALUE = 4
"""The steps to copy a value, without its members."""


def storable(
    value: Any,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    convert: Callable[[Any], Any] | None = None,
    budget: Budget | None = None,
) -> JsonValue:
    """Return a copy of the value that consists of JSON types only.

    `convert` returns a replacement for a value of another type. Raises `ValueError` with the path of the invalid part:
    text with a NUL character or half of a surrogate pair, a number that is not finite or exceeds 64 bits, a value that
    is too large or too deeply nested. A `ValueError` of `convert` is passed on. With `budget`, raises
    `CostLimitExceeded`.
    """
    return _Copier(max_bytes, max_depth, convert, budget).copy(value)


def answer(value: Any, budget: Budget | None = None) -> JsonValue:
    """Return a block's answer if it can be stored. Raises `BlockError` (`invalid_answer`), which is not retryable, and
    `CostLimitExceeded`.
    """
    try:
        return storable(value, max_bytes=MAX_ANSWER_BYTES, budget=budget)
    except ValueError as error:
        raise BlockError("invalid_answer", f"the answer cannot be stored: {error}", retryable=False) from None


def consume_values(value: JsonValue, budget: Budget, steps_per_value: int = STEPS_PER_VALUE) -> None:
    """Consume the steps for work with each value in a value. Raises `CostLimitExceeded`."""
    waiting = [value]
    budget.consume(steps_per_value)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            budget.consume(len(value) // CHARACTERS_PER_STEP)
        elif isinstance(value, dict):
            budget.consume(steps_per_value * len(value))
            budget.consume(sum(map(len, value)) // CHARACTERS_PER_STEP)
            waiting += value.values()
        elif isinstance(value, list):
            budget.consume(steps_per_value * len(value))
            waiting += value


def value_at(path: Sequence[str], value: JsonValue) -> JsonValue:
    """Return the value at a path of object keys and list indexes. Raises `LookupError`."""
    for name in path:
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and _is_index(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            raise LookupError(name)
    return value


def _is_index(name: str) -> bool:
    # Parsing a number with many digits is slow, and no list has that many items.
    return name.isascii() and name.isdigit() and len(name) <= MAX_INDEX_DIGITS


class _InvalidValue(ValueError):
    """A part of the value is invalid. `path` is filled from its end while the error propagates."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []

    def __str__(self) -> str:
        where = ".".join(name[:50] for name in reversed(self.path))[-200:]
        return f"{where.encode(errors='replace').decode() or 'it'} {self.args[0]}"


class _Copier:
    def __init__(
        self, max_bytes: int, max_depth: int, convert: Callable[[Any], Any] | None, budget: Budget | None
    ) -> None:
        self._max_bytes = self._bytes_left = max_bytes
        self._max_depth = max_depth
        self._convert = convert
        self._budget = budget

    def copy(self, value: Any, depth: int = 1) -> JsonValue:
        """Copy a value. `depth` is its depth if it is a list or an object."""
        if isinstance(value, str):
            return self._text(value)
        self._consume(2)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return _checked(value)
        if isinstance(value, dict | list) and depth > self._max_depth:
            raise ValueError(f"it is nested more than {self._max_depth} levels deep")
        if isinstance(value, dict):
            return {self._key(key): self._member(key, child, depth) for key, child in value.items()}
        if isinstance(value, list):
            return [self._member(index, child, depth) for index, child in enumerate(value)]
        if self._convert is None:
            raise _InvalidValue("is not a JSON value")
        return self.copy(self._convert(value), depth)

    def _member(self, name: object, value: Any, depth: int) -> JsonValue:
        try:
            return self.copy(value, depth + 1)
        except _InvalidValue as error:
            error.path.append(str(name))
            raise

    def _key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise _InvalidValue("has a key that is not a string")
        return self._text(key)

    def _text(self, text: str) -> str:
        try:
            self._consume(3 + len(text if text.isascii() else text.encode()))
        except UnicodeEncodeError:
            raise _InvalidValue("contains half of a surrogate pair") from None
        if "\0" in text:
            raise _InvalidValue("contains a NUL character")
        return text

    def _consume(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValueError(f"it is larger than {self._max_bytes} bytes")
        if (budget := self._budget) is not None:
            budget.left -= STEPS_PER_VALUE + size // CHARACTERS_PER_STEP  # a call of `consume` is slower
            if budget.left < 0:
                raise CostLimitExceeded


def _checked(number: int | float) -> int | float:
    if isinstance(number, int):
        if not MIN_INT <= number <= MAX_INT:
            raise _InvalidValue("is an integer of more than 64 bits")
    elif not isfinite(number):
        raise _InvalidValue("is not a finite number")
    return number
