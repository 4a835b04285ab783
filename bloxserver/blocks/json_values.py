"""JSON as every database and every later reader takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from pydantic import JsonValue

from bloxserver.blocks.base import BlockError

MAX_BYTES = 1024 * 1024
MAX_ANSWER_BYTES = 8 * MAX_BYTES
"""More than the largest body of a response, which may be read and written again."""
MAX_DEPTH = 64
MIN_INT = -(2**63)
MAX_INT = 2**64 - 1
MAX_INDEX_DIGITS = 9


def storable(
    value: Any, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, convert: Callable[[Any], Any] | None = None
) -> JsonValue:
    """A copy of the value, of JSON's types alone.

    `convert` is asked what stands for a value of another type. Raises `ValueError`, which says where the trouble is:
    text with a NUL or half of a character, a number that is not finite or does not fit into 64 bits, too much of it
    or too deep, and whatever `convert` raises so.
    """
    return _Copier(max_bytes, max_depth, convert).copy(value)


def answer(value: Any) -> JsonValue:
    """What a block answers. Raises `BlockError` (`invalid_answer`), which no retry can mend."""
    try:
        return storable(value, max_bytes=MAX_ANSWER_BYTES)
    except ValueError as error:
        raise BlockError("invalid_answer", f"the answer cannot be stored: {error}", retryable=False) from None


def value_at(path: Sequence[str], value: JsonValue) -> JsonValue:
    """What stands at the end of a path of keys of objects and indexes of lists. Raises `LookupError`."""
    for name in path:
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and _is_index(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            raise LookupError(name)
    return value


def _is_index(name: str) -> bool:
    # No number of more digits is an index, and reading one can take long.
    return name.isascii() and name.isdigit() and len(name) <= MAX_INDEX_DIGITS


class _Refusal(ValueError):
    """`path` is filled from its end, on the way up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []

    def __str__(self) -> str:
        where = ".".join(name[:50] for name in reversed(self.path))[-200:]
        return f"{where.encode(errors='replace').decode() or 'it'} {self.args[0]}"


class _Copier:
    def __init__(self, max_bytes: int, max_depth: int, convert: Callable[[Any], Any] | None) -> None:
        self._max_bytes = self._bytes_left = max_bytes
        self._max_depth = max_depth
        self._convert = convert

    def copy(self, value: Any, depth: int = 1) -> JsonValue:
        """`depth` is that of the value, if it is a list or an object."""
        if isinstance(value, str):
            return self._text(value)
        self._spend(2)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return _checked(value)
        if isinstance(value, dict | list) and depth > self._max_depth:
            raise ValueError(f"it is nested deeper than {self._max_depth}")
        if isinstance(value, dict):
            return {self._key(key): self._member(key, child, depth) for key, child in value.items()}
        if isinstance(value, list):
            return [self._member(index, child, depth) for index, child in enumerate(value)]
        if self._convert is None:
            raise _Refusal("is no JSON")
        return self.copy(self._convert(value), depth)

    def _member(self, name: object, value: Any, depth: int) -> JsonValue:
        try:
            return self.copy(value, depth + 1)
        except _Refusal as refusal:
            refusal.path.append(str(name))
            raise

    def _key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise _Refusal("has a key that is no text")
        return self._text(key)

    def _text(self, text: str) -> str:
        try:
            self._spend(3 + len(text if text.isascii() else text.encode()))
        except UnicodeEncodeError:
            raise _Refusal("holds half of a character (a lone surrogate)") from None
        if "\0" in text:
            raise _Refusal("holds a NUL character")
        return text

    def _spend(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValueError(f"it is larger than {self._max_bytes} bytes")


def _checked(number: int | float) -> int | float:
    if isinstance(number, int):
        if not MIN_INT <= number <= MAX_INT:
            raise _Refusal("is a whole number of more than 64 bits")
    elif not isfinite(number):
        raise _Refusal("is no finite number")
    return number
