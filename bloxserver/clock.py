"""The current time, and the JSON form of times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError


def as_utc(value: datetime) -> datetime:
    """Convert a time to UTC. A naive value is taken as UTC."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def checked_utc(value: datetime) -> datetime:
    """Return the time in UTC, for fields of models. Raises `PydanticCustomError` outside of the years 1 to 9999."""
    try:
        return as_utc(value)
    except OverflowError:
        raise PydanticCustomError("time_out_of_range", "Must be a time of the years 1 to 9999 in UTC") from None


def now() -> datetime:
    """Return the current time as an aware datetime in UTC."""
    return datetime.now(UTC)


def iso_utc(value: datetime) -> str:
    return as_utc(value).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


UtcTime = Annotated[
    datetime,
    PlainSerializer(iso_utc, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]
"""A time that is serialized as ISO 8601 in UTC, with microseconds and `Z`."""
