"""Adds to the schemas of request bodies what `storable.check_storable` rejects: NUL characters, at any depth."""

from __future__ import annotations

from typing import Any

PREFIX = "#/components/schemas/"
WITHOUT_NUL = r"^[^\u0000]*$"
NESTING = 3
"""Levels of nesting that are described. TypeScript clients that are generated from recursive schemas do not compile."""
ANY_JSON = {"$ref": f"{PREFIX}JsonValue"}


def _json_value(levels: int) -> dict[str, Any]:
    """Return the schema of any JSON value whose texts have no NUL character, up to this level."""
    inner = _json_value(levels - 1) if levels else {}
    return {
        "anyOf": [
            {"type": "null"},
            {"type": "boolean"},
            {"type": "number"},
            {"type": "string", "pattern": WITHOUT_NUL},
            {"type": "array", "items": inner},
            {"type": "object", "additionalProperties": inner, "propertyNames": {"pattern": WITHOUT_NUL}},
        ]
    }


JSON_VALUE = {
    "title": "JsonValue",
    "description": "Any JSON value. Texts and names of members contain no NUL character.",
    **_json_value(NESTING),
}
KEYWORDS = frozenset({"title", "description", "default", "examples"})
"""Keywords that allow every value."""


def complete_request_schemas(document: dict[str, Any]) -> None:
    """Complete the schemas that the JSON request bodies refer to."""
    schemas = document["components"]["schemas"]
    pending = [
        content["schema"]
        for item in document["paths"].values()
        for operation in item.values()
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items()
        if media_type == "application/json"
    ]
    done: set[str] = set()
    while pending:
        for reference in _references(pending.pop()):
            name = reference.removeprefix(PREFIX)
            if name not in done:
                done.add(name)
                _complete(schemas[name])
                pending.append(schemas[name])
    if done:
        schemas["JsonValue"] = JSON_VALUE


def _complete(schema: Any) -> None:
    """Complete a schema and the schemas within it."""
    if isinstance(schema, list):
        for child in schema:
            _complete(child)
    if not isinstance(schema, dict):
        return
    # Only the format of passwords allows every character.
    is_text = schema.get("type") == "string" and schema.get("format", "password") == "password"
    if is_text and schema.keys().isdisjoint({"pattern", "enum", "const"}):
        schema["pattern"] = WITHOUT_NUL
    if schema.get("additionalProperties") is True:
        schema |= {"additionalProperties": ANY_JSON, "propertyNames": {"pattern": WITHOUT_NUL}}
    for name, child in schema.get("properties", {}).items():
        if child.keys() <= KEYWORDS:
            schema["properties"][name] = child | ANY_JSON
        _complete(child)
    for keyword in ("anyOf", "allOf", "oneOf", "items", "additionalProperties", "then"):
        _complete(schema.get(keyword))


def _references(schema: Any) -> set[str]:
    """Return the references in a schema, at any depth, except those to any JSON value."""
    if isinstance(schema, list):
        return {found for child in schema for found in _references(child)}
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"]} if "$ref" in schema else set()
    return (own - {ANY_JSON["$ref"]}).union(*map(_references, schema.values()))
