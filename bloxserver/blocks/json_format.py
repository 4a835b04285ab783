"""`json.format`: writes the message as JSON text."""

from __future__ import annotations

import json

from pydantic import Field, JsonValue, RootModel, StrictInt

from bloxserver.blocks.base import Block, BlockConfig, BlockContext
from bloxserver.blocks.json_values import answer
from bloxserver.blocks.shapes import object_shape


class JsonFormatPayload(RootModel[JsonValue]):
    """Any JSON value."""


class JsonFormatConfig(BlockConfig):
    indent: StrictInt | None = Field(
        None, ge=0, le=8, description="The number of spaces per level. Null: compact, on one line."
    )
    sort_keys: bool = Field(False, description="Sort the members of objects by name.")


async def handle_json_format(payload: JsonFormatPayload, config: JsonFormatConfig, context: BlockContext) -> JsonValue:
    text = json.dumps(
        answer(payload.root),
        ensure_ascii=False,
        allow_nan=False,
        indent=config.indent,
        separators=(",", ":") if config.indent is None else (",", ": "),
        sort_keys=config.sort_keys,
    )
    return answer({"text": text})


block = Block(
    name="json.format",
    description="Writes the message as JSON text.",
    payload=JsonFormatPayload,
    config=JsonFormatConfig,
    answer_shape=lambda config, message: object_shape("text"),
    handler=handle_json_format,
    example={
        "config": {"indent": 2, "sort_keys": True},
        "payload": {"name": "Ada", "born": 1815, "fields": ["mathematics", "poetry"]},
    },
)
