"""`key_value`: stores values for later executions of the same flow."""

from __future__ import annotations

import json
from math import isfinite
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    RootModel,
    StrictFloat,
    StrictInt,
    StrictStr,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from bloxserver.blocks import templates
from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError, JsonSchema
from bloxserver.blocks.shapes import ANYTHING, Shape, object_shape
from bloxserver.blocks.tools import schema_without

Operation = Literal["get", "set", "delete", "add", "increment"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
MAX_NUMBER_AS_KEY = 2**63
MAX_KEY_LENGTH = 255
MAX_VALUE_BYTES = 64 * 1024


class KeyValueRequest(BaseModel):
    """An operation in a message."""

    operation: Operation = Field(description="`add` sets a key that has no value, `increment` adds to a number.")
    key: str = Field(description="The key: 1 to 255 printable characters.")
    value: JsonValue = Field(None, description="The value for `set` and `add`: any JSON value.")
    by: float = Field(1, description="The number that `increment` adds.")


class KeyValuePayload(RootModel[JsonValue]):
    """The members of the operation that the config does not set. If it sets the key, any JSON value."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Agents read this schema. For them the payload is an operation, although any JSON is accepted.
        return handler.resolve_ref_schema(handler(KeyValueRequest.__pydantic_core_schema__))


def _checked(template: JsonValue) -> JsonValue:
    # Secrets are not allowed, because every listener can read the stored values.
    templates.check(template)
    return template


def _checked_key(key: str | None) -> str | None:
    _checked(key)
    literal = key is not None and "{{" not in key
    if literal and not (0 < len(key or "") <= MAX_KEY_LENGTH and str(key).isprintable()):
        raise ValueError(f"a key must have 1 to {MAX_KEY_LENGTH} printable characters")
    return key


def _checked_value(value: JsonValue) -> JsonValue:
    _checked(value)
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    if not templates.has_placeholders(value) and size > MAX_VALUE_BYTES:
        raise ValueError(f"a value must not exceed {MAX_VALUE_BYTES} bytes as JSON")
    return value


def _checked_number(by: float | str | None) -> float | str | None:
    if isinstance(by, str):
        templates.check(by)
        if not templates.is_placeholder(by):
            raise ValueError("must be a number, or one placeholder and nothing else")
    elif isinstance(by, float) and not isfinite(by):
        raise ValueError("must be a finite number")
    return by


class KeyValueConfig(BlockConfig):
    """Members of the config take precedence over those of the message. `{{ payload.… }}` is replaced in their texts."""

    operation: Operation | None = Field(
        None, description="`get`, `set`, `delete`, `add` or `increment`. Default: that of the message."
    )
    key: Annotated[str | None, AfterValidator(_checked_key)] = Field(
        None, description="The key, a text with placeholders. Default: the message's `key`."
    )
    value: Annotated[JsonValue, AfterValidator(_checked_value)] = Field(
        None,
        description="The value for `set` and `add`: any JSON value with placeholders. Default: the message's `value`, "
        "or the whole message if it has no `value` and the config has a key.",
    )
    by: Annotated[StrictInt | StrictFloat | StrictStr | None, AfterValidator(_checked_number)] = Field(
        None, description="For `increment`: a number or one placeholder. Default: the message's `by`, or 1."
    )


async def handle_key_value(payload: KeyValuePayload, config: KeyValueConfig, context: BlockContext) -> JsonValue:
    operation = config.operation or _member(payload.root, "operation")
    if operation not in OPERATIONS:
        raise _invalid(f"the operation must be one of {', '.join(OPERATIONS)}")
    key = _key(payload.root, config, context)
    match operation:
        case "get":
            found, value = await context.store.get(key)
            return {"found": found, "value": value}
        case "set":
            value = _value(payload.root, config, context)
            await context.store.set(key, value)
            return {"value": value}
        case "delete":
            return {"deleted": await context.store.delete(key)}
        case "add":
            added, value = await context.store.add(key, _value(payload.root, config, context))
            return {"added": added, "value": value}
        case _:
            return {"value": await context.store.increment(key, _by(payload.root, config, context))}


def _member(payload: JsonValue, name: str) -> JsonValue:
    return payload.get(name) if isinstance(payload, dict) else None


def _invalid(reason: str) -> BlockError:
    return BlockError("invalid_payload", reason, retryable=False)


def _render(template: JsonValue, payload: JsonValue, context: BlockContext) -> JsonValue:
    return templates.render(template, context.scope(payload), context.budget)


def _key(payload: JsonValue, config: KeyValueConfig, context: BlockContext) -> str:
    key = _member(payload, "key") if config.key is None else _render(config.key, payload, context)
    if isinstance(key, int) and not isinstance(key, bool) and abs(key) <= MAX_NUMBER_AS_KEY:
        return str(key)  # ids of orders and customers are often numbers
    if isinstance(key, str):
        return key
    raise _invalid("the key must be a text or an integer")


def _value(payload: JsonValue, config: KeyValueConfig, context: BlockContext) -> JsonValue:
    if "value" in config.model_fields_set:
        return _render(config.value, payload, context)
    if isinstance(payload, dict) and "value" in payload:
        return payload["value"]
    if config.key is None:
        raise _invalid("the message has no value")
    return payload


def _by(payload: JsonValue, config: KeyValueConfig, context: BlockContext) -> float:
    by = _member(payload, "by") if config.by is None else _render(config.by, payload, context)
    if by is None:
        return 1
    if not isinstance(by, int | float) or isinstance(by, bool):
        raise _invalid("by must be a number")
    return by


def _input_schema(config: KeyValueConfig) -> JsonSchema | None:
    fixed = config.model_fields_set & {"operation", "key", "value", "by"}
    fixed = {name for name in fixed if name == "value" or getattr(config, name) is not None}
    if not fixed:
        return None
    used = {"set": {"value"}, "add": {"value"}, "increment": {"by"}, "get": set(), "delete": set()}
    unused = {"value", "by"} - used.get(config.operation or "", {"value", "by"})
    return schema_without(KeyValueRequest, fixed | unused)


def _answer_shape(config: KeyValueConfig, message: Shape) -> Shape:
    members = {"get": ("found", "value"), "add": ("added", "value"), "delete": ("deleted",)}
    return ANYTHING if config.operation is None else object_shape(*members.get(config.operation, ("value",)))


block = Block(
    name="key_value",
    description="Stores values and counters for later executions of this flow.",
    payload=KeyValuePayload,
    config=KeyValueConfig,
    handler=handle_key_value,
    aliases=("xml_pipeline.tools.keyvalue.handle_*",),
    rendered=frozenset({"key", "value", "by"}),
    input_schema=_input_schema,
    answer_shape=_answer_shape,
    example={
        "config": {"operation": "add", "key": "order {{ payload.order }}"},
        "payload": {"order": 42},
    },
)
