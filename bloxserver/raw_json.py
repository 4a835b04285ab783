"""Large JSON values as text. The event loop neither parses nor writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import JsonValue

SMALL_CHARACTERS = 4_000
"""A text of at most this length is never large."""
MAX_CHARACTERS = 32 * 1024
MAX_VALUES = 4_000
"""About 0.5 milliseconds to parse, and 5 to copy in Python."""
MAX_STORED_VALUES = 2_000
"""For JSON that the API checks against a model, compares with stored JSON, and returns."""


@dataclass(frozen=True, slots=True)
class RawJson:
    """The JSON text of a large value. It is valid, and can be stored."""

    text: str


Value: TypeAlias = JsonValue | RawJson


def is_large(text: str | bytes, max_values: int = MAX_VALUES) -> bool:
    """Whether a JSON text is too long, or may have too many values, for the event loop."""
    if len(text) <= SMALL_CHARACTERS:
        return False
    if len(text) > MAX_CHARACTERS:
        return True
    if isinstance(text, bytes):
        return text.count(b",") + text.count(b"[") + text.count(b"{") > max_values
    return text.count(",") + text.count("[") + text.count("{") > max_values


def value_of_text(text: str, max_values: int = MAX_VALUES) -> Value:
    """Return the value of a valid JSON text."""
    if is_large(text, max_values):
        return RawJson(text)
    value: JsonValue = json.loads(text)
    return value


def text_of_value(value: Value) -> str:
    """Return the JSON text of a value. Non-ASCII characters are kept."""
    return value.text if isinstance(value, RawJson) else json.dumps(value, ensure_ascii=False)


def plain(value: Value) -> JsonValue:
    """Return the value itself, for code that needs it. Its time grows with the size of the value."""
    if isinstance(value, RawJson):
        parsed: JsonValue = json.loads(value.text)
        return parsed
    return value


def plain_object(value: dict[str, Any] | RawJson) -> dict[str, Any]:
    """Return the object itself, as `plain` does."""
    parsed: dict[str, Any] = json.loads(value.text) if isinstance(value, RawJson) else value
    return parsed


def object_of(members: Mapping[str, Value]) -> Value:
    """Return an object with these members, some of which may be large."""
    if not any(isinstance(value, RawJson) for value in members.values()):
        return dict(members)  # type: ignore[arg-type]
    written = (f"{json.dumps(name, ensure_ascii=False)}: {text_of_value(value)}" for name, value in members.items())
    return RawJson("{" + ", ".join(written) + "}")


def list_of(items: list[Value]) -> Value:
    """Return a list of these items, some of which may be large."""
    if not any(isinstance(item, RawJson) for item in items):
        return list(items)  # type: ignore[arg-type]
    return RawJson("[" + ", ".join(map(text_of_value, items)) + "]")
