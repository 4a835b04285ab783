"""From one kind of value to another, and what timestamps and durations say of themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import floor, trunc
from typing import Any

from bloxserver.blocks.cel.values import (
    MAX_INT,
    MIN_INT,
    Failure,
    Run,
    TypeName,
    fitting,
    in_range,
    kind_of,
    plain,
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
    """Cut off towards zero; a timestamp is seconds since 1970."""
    if isinstance(value, datetime):
        seconds: int = floor(value.timestamp())
        return seconds
    number = _parsed("int", value) if isinstance(value, str) else value
    if isinstance(value, str) and isinstance(number, float):
        raise Failure(f"int cannot read {value!r}: it is no whole number")
    whole: int = trunc(number)
    if not MIN_INT <= whole <= MAX_INT:
        raise Failure("a whole number does not fit into 64 bits")
    return whole


def to_double(run: Run, value: Any) -> float:
    number = _parsed("double", value) if isinstance(value, str) else value
    try:
        return float(fitting(float(number), run))
    except OverflowError:
        raise Failure("a number is too large") from None


def _parsed(name: str, text: str) -> int | float:
    if len(text) > MAX_CHARACTERS or not NUMBER.fullmatch(text):
        raise Failure(f"{name} cannot read {text[:MAX_CHARACTERS]!r}")
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def to_string(run: Run, value: Any) -> str:
    """Numbers without an empty fraction, timestamps as ISO 8601, durations as seconds."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, timedelta):
        return f"{_number_text(value.total_seconds())}s"
    if isinstance(value, int | float):
        return _number_text(value)
    return str(value if isinstance(value, str) else plain(value))


def _number_text(number: int | float) -> str:
    if isinstance(number, float) and number.is_integer() and abs(number) < MAX_WHOLE_FLOAT:
        return str(int(number))
    if isinstance(number, int) and not MIN_INT <= number <= MAX_INT:
        raise Failure("a whole number does not fit into 64 bits")
    return str(number)


def to_bool(run: Run, value: Any) -> bool:
    if value in (True, "true", "True", "TRUE", "t", "1"):
        return True
    if value in (False, "false", "False", "FALSE", "f", "0"):
        return False
    raise Failure(f"bool cannot read {value[:MAX_CHARACTERS]!r}")


def to_timestamp(run: Run, value: Any) -> datetime:
    """Of text as in RFC 3339, or seconds since 1970."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, int | float):
        moment: datetime = in_range(lambda: datetime.fromtimestamp(0, UTC) + timedelta(seconds=value))
        return moment
    if not TIMESTAMP.fullmatch(value):
        raise Failure(f"timestamp cannot read {value[:MAX_CHARACTERS]!r}: write it like 2026-01-31T12:00:00Z")
    try:
        read: datetime = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Failure(f"timestamp cannot read {value!r}: there is no such time") from None
    return read


def to_duration(run: Run, value: Any) -> timedelta:
    """Of text like 1h30m, or of seconds."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        found = DURATION.fullmatch(value[: MAX_CHARACTERS + 1]) if len(value) <= MAX_CHARACTERS else None
        if found is None:
            raise Failure(f"duration cannot read {value[:MAX_CHARACTERS]!r}: write it like 1h30m or 1.5s")
        parts = DURATION_PART.findall(found[2])
        total = sum(float(amount) * MICROSECONDS[unit] for amount, unit in parts)
        value = (-total if found[1] == "-" else total) / 1e6
    span: timedelta = in_range(lambda: timedelta(seconds=value))
    return span


def type_of(run: Run, value: Any) -> TypeName:
    return TypeName(TYPES.get(kind_of(value)) or ("double" if isinstance(value, float) else "int"))


def timestamp_part(of: Callable[[datetime], int]) -> Callable[[Run, datetime], int]:
    return lambda run, moment: of(moment.astimezone(UTC))


def time_part(of: Callable[[datetime], int], unit: float) -> Callable[[Run, datetime | timedelta], int]:
    """Of a duration it is the whole of it in that unit of seconds."""

    def part(run: Run, value: datetime | timedelta) -> int:
        if isinstance(value, timedelta):
            return trunc(value.total_seconds() / unit)
        return of(value.astimezone(UTC))

    return part
