"""Base classes of bodies."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field, model_validator

from bloxserver.json_models import CamelModel
from bloxserver.storable import check_storable


class RequestModel(CamelModel):
    """Base of request bodies. Rejects text that the database cannot store. Unknown members are ignored, whatever they
    contain, because clients send whole objects back.
    """

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        if isinstance(value, dict):
            names = {*cls.model_fields, *(field.alias for field in cls.model_fields.values())}
            check_storable([value[name] for name in names if name in value])
        return value

    def sent(self) -> dict[str, Any]:
        """The members that were sent, by field. A large value is a `RawJson`."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        return {
            name: value.model_dump(by_alias=True) if isinstance(value, BaseModel) else value
            for name, value in values.items()
        }


Item = TypeVar("Item")


class PaginatedResponse(CamelModel, Generic[Item]):
    """A page of a list."""

    items: list[Item]
    total: int = Field(description="The number of items on all pages.")
    total_is_exact: bool = Field(True, description="Whether `total` is exact. If it is not, there may be more items.")
    page: int = Field(description="The number of this page, from 1.")
    page_size: int
    has_more: bool = Field(description="Whether there is a next page.")


class CursorPage(PaginatedResponse[Item], Generic[Item]):
    """A page of a list that can also be read with cursors."""

    next_cursor: str | None = Field(
        description="The `cursor` of the next page; null on the last page. New rows move the numbers of pages, but not "
        "cursors."
    )
