"""Checks and conversions for text and JSON that both databases can store."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import JsonValue
from pydantic_core import PydanticCustomError

MAX_DEPTH = 64
MAX_NODES = 50_000


def check_storable(value: Any) -> None:
    """Check that both databases can store the JSON value.

    Raises `PydanticCustomError` for NUL, lone surrogates, numbers that are not finite, and excessive depth or size.
    """
    stack: list[tuple[Any, int]] = [(value, 1)]
    nodes = 0
    while stack:
        current, depth = stack.pop()
        nodes += 1
        if depth > MAX_DEPTH:
            raise PydanticCustomError("json_too_deep", "JSON is nested more than {limit} deep", {"limit": MAX_DEPTH})
        if nodes > MAX_NODES:
            raise PydanticCustomError("json_too_large", "JSON has more than {limit} values", {"limit": MAX_NODES})
        if isinstance(current, str):
            check_text(current)
        elif isinstance(current, float) and not math.isfinite(current):
            raise PydanticCustomError("number_not_finite", "Numbers must be finite")
        elif isinstance(current, dict):
            stack.extend((child, depth + 1) for pair in current.items() for child in pair)
        elif isinstance(current, list):
            stack.extend((child, depth + 1) for child in current)


def check_text(value: str) -> str:
    """Return the text. Raises `PydanticCustomError` if it contains NUL or lone surrogates."""
    if "\0" in value:
        raise PydanticCustomError("text_has_nul", "Text must not contain NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("text_not_unicode", "Text must not contain lone surrogates") from None
    return value


def storable_text(text: str) -> str:
    """Replace characters that a database cannot store, for example in an error message that quotes user input."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


_ENCODER = json.JSONEncoder(ensure_ascii=False)
"""Made once: `json.dumps` makes one for each call with these arguments, which takes half of its time."""


def json_text(value: JsonValue) -> str:
    """Serialize to JSON. Non-ASCII characters are escaped only if the value contains lone surrogates."""
    text = _ENCODER.encode(value)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
