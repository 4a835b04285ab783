"""What all bodies share: camelCase on the wire, snake_case accepted, and strict care for what clients send."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, PlainSerializer, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

MAX_DEPTH = 64
MAX_NODES = 50_000


class CamelModel(BaseModel):
    """Base of everything that goes over the wire."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)


class RequestModel(CamelModel):
    """Base of request bodies. Unknown members are ignored: clients send back whole objects."""

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        check_storable(value)
        return value


def _iso_utc(value: datetime) -> str:
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


UtcTime = Annotated[datetime, PlainSerializer(_iso_utc, return_type=str)]
"""An instant as ISO 8601 in UTC, always with six digits of a second and `Z`."""

Item = TypeVar("Item")


class PaginatedResponse(CamelModel, Generic[Item]):
    """One page of a list; `total` counts all items."""

    items: list[Item]
    total: int
    page: int
    page_size: int
    has_more: bool


def check_storable(value: Any) -> None:
    """Refuse JSON that a database or a later reader chokes on: NUL, lone surrogates, NaN, endless depth or size."""
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
    """The text itself, unless it holds what no database stores as text."""
    if "\0" in value:
        raise PydanticCustomError("text_has_nul", "Text must not contain NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("text_not_unicode", "Text must not contain lone surrogates") from None
    return value
