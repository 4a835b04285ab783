"""`{{ payload.path.to.value }}` in the texts of a JSON value, replaced by what it names.

A path is the name of a value in the scope, then keys of objects and indexes of lists, between dots. There are no
expressions, filters or attributes: all that a template can do is copy. What was copied is not looked at again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import JsonValue

from bloxserver.blocks.base import BlockError

MAX_PLACEHOLDERS = 100
MAX_OUTPUT_BYTES = 1024 * 1024
MAX_DEPTH = 64
MAX_INDEX_DIGITS = 9
ROOTS = frozenset({"payload"})


@dataclass(frozen=True)
class Placeholder:
    path: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.path)


def check(template: JsonValue, roots: frozenset[str] = ROOTS) -> None:
    """Raise `ValueError` for a template that cannot be rendered with a scope of these names, whatever is in it."""
    count = 0
    level = [template]
    for _ in range(MAX_DEPTH):
        for value in level:
            if not isinstance(value, str):
                continue
            for part in _parse(value):
                if isinstance(part, Placeholder):
                    count += 1
                    _check_root(part, roots)
        if count > MAX_PLACEHOLDERS:
            raise ValueError(f"more than {MAX_PLACEHOLDERS} placeholders")
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def render(template: JsonValue, scope: dict[str, JsonValue]) -> JsonValue:
    """The template with its placeholders replaced.

    A text that is one placeholder becomes the value itself, of its type; within other text a value that is not a
    text becomes compact JSON. Raises `BlockError`: `template_invalid`, `template_missing_value`,
    `template_invalid_value`, `template_too_large`.
    """
    try:
        check(template, frozenset(scope))
    except ValueError as error:
        raise BlockError("template_invalid", str(error)) from None
    return _Renderer(scope).render(template)


class _Renderer:
    """Renders a checked template, and stops before the output is too large."""

    def __init__(self, scope: dict[str, JsonValue]) -> None:
        self._scope = scope
        self._bytes_left = MAX_OUTPUT_BYTES

    def render(self, template: JsonValue) -> JsonValue:
        if isinstance(template, str):
            return self._render_text(template)
        if isinstance(template, dict):
            return {key: self.render(value) for key, value in template.items()}
        if isinstance(template, list):
            return [self.render(value) for value in template]
        return template

    def _render_text(self, text: str) -> JsonValue:
        parts = _parse(text)
        if len(parts) == 1 and isinstance(parts[0], Placeholder):
            value = _look_up(parts[0], self._scope)
            self._spend(_as_text(value, parts[0]))
            return value
        return "".join(self._spend(part if isinstance(part, str) else self._interpolated(part)) for part in parts)

    def _interpolated(self, placeholder: Placeholder) -> str:
        return _as_text(_look_up(placeholder, self._scope), placeholder)

    def _spend(self, text: str) -> str:
        self._bytes_left -= len(text.encode(errors="surrogatepass"))
        if self._bytes_left < 0:
            raise BlockError("template_too_large", f"the result is larger than {MAX_OUTPUT_BYTES} bytes")
        return text


def _parse(text: str) -> list[str | Placeholder]:
    """The text cut at its placeholders, without empty pieces. Raises `ValueError`."""
    parts: list[str | Placeholder] = []
    position = 0
    while (start := text.find("{{", position)) >= 0:
        end = text.find("}}", start)
        if end < 0:
            raise ValueError("a {{ has no }}")
        if start > position:
            parts.append(text[position:start])
        parts.append(_placeholder(text[start + 2 : end]))
        position = end + 2
    if position < len(text):
        parts.append(text[position:])
    return parts


def _placeholder(text: str) -> Placeholder:
    path = text.strip()
    names = tuple(path.split("."))
    if "{" in path or not all(names):
        raise ValueError("between {{ and }} there must be a path like payload.user.name")
    return Placeholder(names)


def _check_root(placeholder: Placeholder, roots: frozenset[str]) -> None:
    root = placeholder.path[0]
    if root not in roots:
        raise ValueError(f"{root[:100]} is unknown; a path starts with {' or '.join(sorted(roots))}")


def _children(value: JsonValue) -> list[JsonValue]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _look_up(placeholder: Placeholder, scope: dict[str, JsonValue]) -> JsonValue:
    value: JsonValue = scope
    for name in placeholder.path:
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and _is_index(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            raise BlockError("template_missing_value", f"the message has no {str(placeholder)[:200]}")
    return value


def _is_index(name: str) -> bool:
    # No number of more digits is an index, and reading one can take long.
    return name.isascii() and name.isdigit() and len(name) <= MAX_INDEX_DIGITS


def _as_text(value: JsonValue, placeholder: Placeholder) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise BlockError("template_invalid_value", f"{str(placeholder)[:200]} is no valid JSON") from None
