"""`json.parse`: parses JSON text."""

from __future__ import annotations

from codecs import BOM_UTF8
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, GetJsonSchemaHandler, JsonValue, RootModel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, from_json

from bloxserver.blocks import templates
from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError, JsonSchema
from bloxserver.blocks.json_values import MAX_ANSWER_BYTES, storable, value_at
from bloxserver.blocks.tools import schema_of_paths


class JsonText(BaseModel):
    text: str = Field(description="JSON text.")


class JsonParsePayload(RootModel[JsonValue]):
    """The text, or an object that contains the text."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Agents read this schema. For them the payload is an object with the text.
        return handler.resolve_ref_schema(handler(JsonText.__pydantic_core_schema__))


def _checked(path: str) -> str:
    templates.check_path(path)
    return path


class JsonParseConfig(BlockConfig):
    path: Annotated[str, AfterValidator(_checked)] | None = Field(
        None,
        description="The path of the text in the message, like `body.data`. Default: `text`, or the message itself.",
    )


async def handle_json_parse(payload: JsonParsePayload, config: JsonParseConfig, context: BlockContext) -> JsonValue:
    return _parsed(_text(payload.root, config.path))


def _text(payload: JsonValue, path: str | None) -> str:
    try:
        names = path.split(".") if path else ["text"] if isinstance(payload, dict) else []
        text = value_at(names, payload)
    except LookupError:
        raise BlockError("missing_value", f"the message has no {(path or 'text')[:200]}", retryable=False) from None
    if not isinstance(text, str):
        raise BlockError("invalid_payload", f"{(path or 'the message')[:200]} is not text", retryable=False)
    return text


def _parsed(text: str) -> JsonValue:
    try:
        return storable(
            from_json(text.encode().removeprefix(BOM_UTF8), allow_inf_nan=False), max_bytes=MAX_ANSWER_BYTES
        )
    except UnicodeEncodeError as error:
        reason = f"half of a surrogate pair at character {error.start + 1}"
    except ValueError as error:
        reason = str(error)
    raise BlockError("invalid_json", f"the text is not valid JSON: {reason}", retryable=False)


def _input_schema(config: JsonParseConfig) -> JsonSchema | None:
    return None if config.path is None else schema_of_paths([config.path.split(".")])


block = Block(
    name="json.parse",
    description="Parses JSON text. If an object repeats a member, the last value is used.",
    payload=JsonParsePayload,
    config=JsonParseConfig,
    handler=handle_json_parse,
    input_schema=_input_schema,
    example={"config": {}, "payload": {"text": '{"name": "Ada", "scores": [3, 4.5]}'}},
)
