"""The base class of models whose JSON has camelCase members."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


def _field_title(name: str, field: Any) -> str:
    """The title of a member in the JSON Schema. Pydantic would make it from the alias: `Createdat`."""
    return name.replace("_", " ").capitalize()


class CamelModel(BaseModel):
    """Serializes to camelCase. Validates camelCase, snake_case, and objects with attributes of these names."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, from_attributes=True, field_title_generator=_field_title
    )
