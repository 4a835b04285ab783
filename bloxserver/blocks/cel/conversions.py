"""Conversions between kinds of values, and the parts of timestamps and durations."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from math import floor, trunc
from typing import Any

from bloxserver.blocks.cel.values import (
    MAX_INT,
    MIN_INT,
    EvaluationError,
    Run,
    TypeName,
    bounded,
    in_range,
    kind_of,
    to_json_value,
)

MAX_CHARACTERS = 100
MAX_WHOLE_FLOAT = 2**53
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
DURATION = re.compile(r"([+-]?)((?:\d+(?:\.\d+)?(?:h|ms|m|s|us|ns))+)", re.ASCII)
DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|ns)", re.ASCII)
MICROSECONDS = {"h": 3600e6, "m": 60e6, "s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
TYPES = {
    "null": "null_type",
    "a boolean": "bool",
    "a text": "string",
    "a list": "list",
    "an object": "map",
    "a timestamp": "timestamp",
    "a duration": "duration",
    "a type": "type",
}
TYPE_NAMES = frozenset({*TYPES.values(), "int", "double"})


def to_int(run: Run, value: Any) -> int:
    """Convert to an integer, truncated towards zero. A timestamp becomes seconds since 1970."""
    if isinstance(value, datetime):
        seconds: int = floor(value.timestamp())
        return seconds
    number = parsed_number("int", value) if isinstance(value, str) else value
    if isinstance(value, str) and isinstance(number, float):
        raise EvaluationError(f"int cannot convert {value!r}, which is not an integer")
    whole: int = in_range(lambda: trunc(number), "an integer exceeds 64 bits")
    if not MIN_INT <= whole <= MAX_INT:
        raise EvaluationError("an integer exceeds 64 bits")
    return whole


def to_double(run: Run, value: Any) -> float:
    number = parsed_number("double", value) if isinstance(value, str) else value
    try:
        return float(bounded(float(number), run))
    except OverflowError:
        raise EvaluationError("a number is too large") from None


def parsed_number(name: str, text: str) -> int | float:
    if len(text) > MAX_CHARACTERS or not NUMBER.fullmatch(text):
        raise EvaluationError(f"{name} cannot convert {text[:MAX_CHARACTERS]!r}")
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def to_string(run: Run, value: Any) -> str:
    """Convert to text: integral numbers without a fraction, timestamps as ISO 8601, durations as seconds."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, timedelta):
        return f"{_number_text(value.total_seconds())}s"
    if isinstance(value, int | float):
        return _number_text(value)
    return str(value if isinstance(value, str) else to_json_value(value))


def _number_text(number: int | float) -> str:
    if isinstance(number, float) and number.is_integer() and abs(number) < MAX_WHOLE_FLOAT:
        return str(int(number))
    if isinstance(number, int) and not MIN_INT <= number <= MAX_INT:
        raise EvaluationError("an integer exceeds 64 bits")
    return str(number)


def to_bool(run: Run, value: Any) -> bool:
    if value in (True, "true", "True", "TRUE", "t", "1"):
        return True
    if value in (False, "false", "False", "FALSE", "f", "0"):
        return False
    raise EvaluationError(f"bool cannot convert {value[:MAX_CHARACTERS]!r}")


def to_timestamp(run: Run, value: Any) -> datetime:
    """Convert RFC 3339 text or seconds since 1970 to a timestamp."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, int | float):
        moment: datetime = in_range(lambda: datetime.fromtimestamp(0, UTC) + timedelta(seconds=value))
        return moment
    if not TIMESTAMP.fullmatch(value):
        raise EvaluationError(f"timestamp cannot convert {value[:MAX_CHARACTERS]!r}; write 2026-01-31T12:00:00Z")
    try:
        read: datetime = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise EvaluationError(f"timestamp cannot convert {value!r}; this time does not exist") from None
    return read


def to_duration(run: Run, value: Any) -> timedelta:
    """Convert text like 1h30m or a number of seconds to a duration."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        run.budget.consume(min(len(value), MAX_CHARACTERS))
        found = DURATION.fullmatch(value) if len(value) <= MAX_CHARACTERS else None
        if found is None:
            raise EvaluationError(f"duration cannot convert {value[:MAX_CHARACTERS]!r}; write 1h30m or 1.5s")
        parts = DURATION_PART.findall(found[2])
        total = sum(float(amount) * MICROSECONDS[unit] for amount, unit in parts)
        value = (-total if found[1] == "-" else total) / 1e6
    span: timedelta = in_range(lambda: timedelta(seconds=value))
    return span


def type_of(run: Run, value: Any) -> TypeName:
    return TypeName(TYPES.get(kind_of(value)) or ("double" if isinstance(value, float) else "int"))
