"""Large values in models: JSON texts and long strings.

No model validates or writes them. While a response is rendered, a model writes a placeholder instead of a large value;
`rendering.render` replaces it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import (
    GetCoreSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    WrapSerializer,
)
from pydantic_core import CoreSchema, core_schema

from bloxserver.raw_json import SMALL_CHARACTERS, RawJson, plain

_MARK = secrets.token_hex(16)
"""Placeholders contain it. It is never sent, so no stored text can contain it."""
PLACEHOLDER_START = f'"{_MARK}'.encode()
"""In a JSON text, the index of the value and a quotation mark follow."""
_held: ContextVar[list[RawJson | str] | None] = ContextVar("held_values", default=None)
"""The large values of the response that is being rendered."""


@contextmanager
def holding() -> Iterator[list[RawJson | str]]:
    """Write placeholders instead of large values, which the list gets. Otherwise they are written as they are."""
    held: list[RawJson | str] = []
    token = _held.set(held)
    try:
        yield held
    finally:
        _held.reset(token)


def _hold(value: RawJson | str) -> str | None:
    """Return the placeholder of a value; None outside of `holding`."""
    held = _held.get()
    if held is None:
        return None
    held.append(value)
    return f"{_MARK}{len(held) - 1}"


def _accept(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return value if isinstance(value, RawJson) else handler(value)


def _write(value: Any, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
    if not isinstance(value, RawJson):
        return handler(value)
    placeholder = _hold(value) if info.mode_is_json() else None
    return placeholder or plain(value)


def _write_text(value: str, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> str:
    placeholder = _hold(value) if len(value) > SMALL_CHARACTERS and info.mode_is_json() else None
    text: str = placeholder or handler(value)
    return text


class _Raw:
    """Adds `RawJson` to the values of a type, but not to its JSON Schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        writer = core_schema.wrap_serializer_function_ser_schema(_write, info_arg=True, schema=schema)
        return core_schema.no_info_wrap_validator_function(_accept, schema, serialization=writer)


Value = TypeVar("Value")
MaybeRaw: TypeAlias = Annotated[Value, _Raw()]
"""A value of this type, or a large one as `RawJson`, which is already valid."""
LongText: TypeAlias = Annotated[str, WrapSerializer(_write_text)]
"""A text that can be long."""
