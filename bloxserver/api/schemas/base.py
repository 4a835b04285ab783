"""What all bodies share: camelCase on the wire, snake_case accepted, and strict care for what clients send."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import model_validator

from bloxserver.json_models import CamelModel
from bloxserver.storable import check_storable


class RequestModel(CamelModel):
    """Base of request bodies. Unknown members are ignored: clients send back whole objects."""

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        check_storable(value)
        return value


Item = TypeVar("Item")


class PaginatedResponse(CamelModel, Generic[Item]):
    """One page of a list; `total` counts all items."""

    items: list[Item]
    total: int
    page: int
    page_size: int
    has_more: bool
