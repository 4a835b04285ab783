"""The clock of this process, and how instants are written in JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import PlainSerializer


def as_utc(value: datetime) -> datetime:
    """The instant in UTC; a naive value is taken to be UTC already."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """The current instant, aware UTC."""
    return datetime.now(UTC)


def _iso_utc(value: datetime) -> str:
    return as_utc(value).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


UtcTime = Annotated[datetime, PlainSerializer(_iso_utc, return_type=str)]
"""An instant in ISO 8601 in UTC, with six digits of a second and `Z`."""
