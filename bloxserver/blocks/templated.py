"""Members of configs with placeholders that the handler itself replaces."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, JsonValue, StrictStr, ValidationInfo

from bloxserver.blocks import templates
from bloxserver.blocks.base import CHECKED


def _checked_text(template: str, info: ValidationInfo) -> str:
    _checked(template, info)
    return template


def _checked(template: JsonValue, info: ValidationInfo) -> JsonValue:
    if info.context != CHECKED:
        templates.check(template)
    return template


TemplateText = Annotated[StrictStr, AfterValidator(_checked_text)]
TemplateValue = Annotated[JsonValue, AfterValidator(_checked)]
