"""Large request bodies in a process of their own: bytes to bytes. See `bloxserver.isolation`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from bloxserver.api import schemas
from bloxserver.api.definitions import definition_of_json
from bloxserver.errors import Unprocessable
from bloxserver.isolation.parts import join_parts, split_parts
from bloxserver.raw_json import MAX_STORED_VALUES, is_large

MAX_ERRORS = 1_000
"""The number of invalid fields that a response names."""


def read_body(request: bytes) -> bytes:
    """Read a JSON body and check it against a model of `schemas`.

    The request has the name of the model and the body. The first part of the response is JSON: `value`, `errors`, or
    `malformed` with the position. The texts of large members follow. `large` has their names, and whether the member is
    this text, or the text is its JSON.
    """
    name, body = split_parts(request)
    try:
        value = json.loads(body)
    except json.JSONDecodeError as error:
        return _response({"malformed": [error.msg, error.pos]})
    except (ValueError, RecursionError):
        return _response({"malformed": None})
    if not isinstance(value, dict):
        return _response({"value": type(value)() if value is not None else None})
    model: type[BaseModel] = getattr(schemas, name.decode())
    try:
        checked = TypeAdapter(model).validate_python(value, from_attributes=True)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_context=False, include_input=False)[:MAX_ERRORS]
        return _response({"errors": to_jsonable_python(errors)})
    return _members(checked, value)


def read_definition(body: bytes) -> bytes:
    """Return the definition in a JSON body as the second part; the first part is JSON: whether there is one."""
    try:
        definition = definition_of_json(body)
    except Unprocessable as error:
        return _response({"reasons": error.details})
    return _response({"given": definition is not None}, definition or b"")


def _members(checked: BaseModel, value: dict[str, Any]) -> bytes:
    """Return the members of a valid body that its model knows."""
    small: dict[str, Any] = {}
    large: list[tuple[str, bool]] = []
    texts: list[bytes] = []
    for field in checked.model_fields_set:
        alias = type(checked).model_fields[field].alias or field
        member = value[alias] if alias in value else value[field]
        if isinstance(model := getattr(checked, field), BaseModel):
            member = model.model_dump(by_alias=True)  # with its defaults
        is_text = isinstance(member, str)
        text = member if is_text else WRITERS.get(field, _write)(member)
        if is_large(text, MAX_STORED_VALUES):
            large.append((alias, is_text))
            texts.append(text.encode())
        else:
            small[alias] = member
    return _response({"value": small, "large": large}, *texts)


def _write(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_compactly(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


WRITERS: dict[str, Callable[[Any], str]] = {
    "canvas_state": json.dumps,  # as SQLAlchemy writes a small canvas: the same canvas must have the same text
    "config": _write_compactly,  # the size of this text is limited
}
"""How the values of members are written; others keep all characters, as the input of an execution does."""


def _response(header: dict[str, Any], *parts: bytes) -> bytes:
    return join_parts([json.dumps(header).encode(), *parts])
