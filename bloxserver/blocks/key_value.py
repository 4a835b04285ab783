"""`key_value`: remembers values for later executions of the same flow."""

from __future__ import annotations

import json
import re
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
from bloxserver.blocks.tools import without

Operation = Literal["get", "set", "delete", "add", "increment"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
MAX_NUMBER_AS_KEY = 2**63
MAX_KEY_LENGTH = 255
MAX_VALUE_BYTES = 64 * 1024
ONE_PLACEHOLDER = re.compile(r"{{[^{}]*}}")


class KeyValueRequest(BaseModel):
    """What to do, as a message says it."""

    operation: Operation = Field(description="add sets a key unless it has a value, increment adds to a number.")
    key: str = Field(description="1 to 255 printable characters.")
    value: JsonValue = Field(None, description="For set and add: any JSON.")
    by: float = Field(1, description="For increment.")


class KeyValuePayload(RootModel[JsonValue]):
    """What to do, as far as the config does not say it; where that names a key, any JSON, which may be the value."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Agents read it to know what to send: for them it is the request, although any JSON is taken.
        return handler.resolve_ref_schema(handler(KeyValueRequest.__pydantic_core_schema__))


def _checked(template: JsonValue) -> JsonValue:
    # The message alone may stand in it, and no secret: every listener can read what is remembered.
    templates.check(template)
    return template


def _checked_key(key: str | None) -> str | None:
    _checked(key)
    literal = key is not None and "{{" not in key
    if literal and not (0 < len(key or "") <= MAX_KEY_LENGTH and str(key).isprintable()):
        raise ValueError(f"a key has 1 to {MAX_KEY_LENGTH} printable characters")
    return key


def _checked_value(value: JsonValue) -> JsonValue:
    _checked(value)
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    if not templates.paths(value) and size > MAX_VALUE_BYTES:
        raise ValueError(f"a value has at most {MAX_VALUE_BYTES} bytes as JSON")
    return value


def _checked_number(by: float | str | None) -> float | str | None:
    if isinstance(by, str):
        templates.check(by)
        if not ONE_PLACEHOLDER.fullmatch(by):
            raise ValueError("it must be a number, or one placeholder and nothing else")
    elif isinstance(by, float) and not isfinite(by):
        raise ValueError("it must be a finite number")
    return by


class KeyValueConfig(BlockConfig):
    """What is set here goes before what the message says. In texts `{{ payload.… }}` is replaced."""

    operation: Operation | None = Field(None, description="get, set, delete, add or increment; null: the message's.")
    key: Annotated[str | None, AfterValidator(_checked_key)] = Field(
        None, description="A text with placeholders; null: the message's `key`."
    )
    value: Annotated[JsonValue, AfterValidator(_checked_value)] = Field(
        None,
        description="For set and add, any JSON with placeholders. Where it is left out: the message's `value`, "
        "or with a key in the config and no such member, the message.",
    )
    by: Annotated[StrictInt | StrictFloat | StrictStr | None, AfterValidator(_checked_number)] = Field(
        None, description="For increment, a number or one placeholder; null: the message's `by`, or 1."
    )


async def handle_key_value(payload: KeyValuePayload, config: KeyValueConfig, context: BlockContext) -> JsonValue:
    operation = config.operation or _member(payload.root, "operation")
    if operation not in OPERATIONS:
        raise _invalid(f"an operation is one of {', '.join(OPERATIONS)}")
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


def _filled(template: JsonValue, payload: JsonValue, context: BlockContext) -> JsonValue:
    return templates.render(template, context.scope(payload))


def _key(payload: JsonValue, config: KeyValueConfig, context: BlockContext) -> str:
    key = _member(payload, "key") if config.key is None else _filled(config.key, payload, context)
    if isinstance(key, int) and not isinstance(key, bool) and abs(key) <= MAX_NUMBER_AS_KEY:
        return str(key)  # orders and customers often have numbers
    if isinstance(key, str):
        return key
    raise _invalid("a key is a text or a whole number")


def _value(payload: JsonValue, config: KeyValueConfig, context: BlockContext) -> JsonValue:
    if "value" in config.model_fields_set:
        return _filled(config.value, payload, context)
    if isinstance(payload, dict) and "value" in payload:
        return payload["value"]
    if config.key is None:
        raise _invalid("the message has no value")
    return payload


def _by(payload: JsonValue, config: KeyValueConfig, context: BlockContext) -> float:
    by = _member(payload, "by") if config.by is None else _filled(config.by, payload, context)
    if by is None:
        return 1
    if not isinstance(by, int | float) or isinstance(by, bool):
        raise _invalid("what is added is a number")
    return by


def _left(config: KeyValueConfig) -> JsonSchema | None:
    fixed = config.model_fields_set & {"operation", "key", "value", "by"}
    fixed = {name for name in fixed if name == "value" or getattr(config, name) is not None}
    if not fixed:
        return None
    used = {"set": {"value"}, "add": {"value"}, "increment": {"by"}, "get": set(), "delete": set()}
    unused = {"value", "by"} - used.get(config.operation or "", {"value", "by"})
    return without(KeyValueRequest, fixed | unused)


block = Block(
    name="key_value",
    description="Remembers values under keys for later executions of this flow, and counts.",
    payload=KeyValuePayload,
    config=KeyValueConfig,
    handler=handle_key_value,
    aliases=("xml_pipeline.tools.keyvalue.handle_*",),
    rendered=frozenset({"key", "value", "by"}),
    left=_left,
    example={
        "config": {"operation": "add", "key": "order {{ payload.order }}"},
        "payload": {"order": 42},
    },
)
