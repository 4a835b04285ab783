"""Listeners as tools of agents: their names, descriptions and argument schemas."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from pydantic import BaseModel, JsonValue

from bloxserver.blocks import templates
from bloxserver.blocks.base import AnyBlock, BlockConfig, JsonSchema, Tool
from bloxserver.blocks.expressions import compile_expression
from bloxserver.blocks.names import MESSAGE_ROOTS
from bloxserver.blocks.placeholder_syntax import paths_in

MAX_DESCRIPTION_CHARACTERS = 1024
MAX_TOOL_NAME = 64
NOT_IN_TOOL_NAME = re.compile(r"[^A-Za-z0-9_-]")
INPUT = "input"
"""The argument that contains the payload if a listener does not take an object."""


def tool_of(
    name: str,
    description: str,
    block: AnyBlock,
    config: BlockConfig,
    taken: Collection[str],
    given: Mapping[str, JsonValue] | None = None,
    for_each: str | None = None,
) -> Tool:
    """Return a listener as a tool. `given` is its config as written, `taken` the names of the agent's other tools."""
    schema = _input_schema(block, config, given or {}) if for_each is None else _schema_of_list(for_each)
    wrapped = schema.get("type") != "object"
    if wrapped:
        definitions = schema.pop("$defs", None)
        schema = {"type": "object", "properties": {INPUT: schema}, "required": [INPUT]}
        if definitions:
            schema["$defs"] = definitions
    return Tool(tool_name(name, taken), name, description[:MAX_DESCRIPTION_CHARACTERS], schema, wrapped)


def tool_name(name: str, taken: Collection[str]) -> str:
    """Return a valid tool name that differs from those that are taken."""
    safe = NOT_IN_TOOL_NAME.sub("_", name)[:MAX_TOOL_NAME]
    chosen, number = safe, 1
    while chosen in taken:
        number += 1
        chosen = f"{safe[: MAX_TOOL_NAME - len(str(number)) - 1]}_{number}"
    return chosen


def unexpected_arguments(tool: Tool, arguments: Mapping[str, JsonValue]) -> list[str]:
    """Return the arguments that the tool does not accept: unknown ones, and those that its config sets."""
    if not tool.wrapped and tool.schema.get("additionalProperties", True) is not False:
        return []
    return [name for name in arguments if name not in tool.schema["properties"]]


def any_schema(description: str) -> JsonSchema:
    """Return the schema of any JSON value."""
    return {"description": description}


def object_schema(properties: JsonSchema, required: Iterable[str]) -> JsonSchema:
    """Return the schema of an object with these members and no others."""
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def schema_without(model: type[BaseModel], fixed: Collection[str]) -> JsonSchema:
    """Return the schema of a model without the members in `fixed`."""
    schema = model.model_json_schema()
    properties = {name: value for name, value in schema["properties"].items() if name not in fixed}
    left = object_schema(properties, (name for name in schema.get("required", ()) if name not in fixed))
    return {**schema, **left}


def schema_of_paths(paths: Iterable[Sequence[str]]) -> JsonSchema:
    """Return the schema of a message with values at these paths. An empty path means any message."""
    schema: JsonSchema = {"type": "object", "properties": {}, "required": []}
    for path in paths:
        if not path:
            return any_schema("The message: any JSON value.")
        _add(schema, path)
    return schema


def _add(schema: JsonSchema, path: Sequence[str]) -> None:
    for number, name in enumerate(path):
        inside = schema["properties"].setdefault(name, {})
        schema["required"] = list(dict.fromkeys([*schema["required"], name]))
        rest = path[number + 1 :]
        # A number can be the index of a list or the name of a member.
        if not rest or rest[0].isdigit() or "description" in inside:
            inside.clear()
            inside["description"] = f"Any JSON value: the message's {'.'.join(path[: number + 1])}."
            return
        if "properties" not in inside:
            inside.update({"type": "object", "properties": {}, "required": []})
        schema = inside


def _schema_of_list(for_each: str) -> JsonSchema:
    """Return the schema of the message of a loop: with the values that its expression refers to."""
    found = paths_in(compile_expression(for_each, MESSAGE_ROOTS).program)
    return schema_of_paths(path[1:] for path in found if path[0] == "payload")


def _input_schema(block: AnyBlock, config: BlockConfig, given: Mapping[str, JsonValue]) -> JsonSchema:
    """Return the schema of the message for a config, with the values that its placeholders refer to."""
    schema: JsonSchema | None = block.input_schema(config)
    if schema is None:
        schema = block.payload.model_json_schema()
    paths = [
        path[1:]
        for member in sorted(block.templates | block.rendered)
        for path in templates.paths(given.get(member))
        if path[0] == "payload"
    ]
    if not paths:
        return schema
    placeholder_schema = schema_of_paths(paths)
    if schema.get("type") != "object":
        return placeholder_schema
    if placeholder_schema.get("type") != "object":
        return schema if schema["properties"] else placeholder_schema
    properties = placeholder_schema["properties"] | schema["properties"]
    required = list(dict.fromkeys([*schema.get("required", ()), *placeholder_schema["required"]]))
    return {**schema, "properties": properties, "required": required}
