"""`{{ payload.path.to.value }}` in the texts of a JSON value, replaced by what it names.

A path is the name of a value in the scope, then keys of objects and indexes of lists, between dots. There are no
expressions, filters or attributes: all that a template can do is copy. What was copied is not looked at again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.json_values import value_at

MAX_PLACEHOLDERS = 100
MAX_OUTPUT_BYTES = 1024 * 1024
MAX_DEPTH = 64
ROOTS = frozenset({"payload", "input"})
SECRETS = "secrets"
SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Placeholder:
    path: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.path)


def check(template: JsonValue, roots: frozenset[str] = ROOTS) -> None:
    """Raise `ValueError` for a template that cannot be rendered with a scope of these names, whatever is in it.

    Where secrets are among them, a path to one is `secrets.NAME`, and no other.
    """
    for placeholder in _placeholders(template):
        root = placeholder.path[0]
        if root not in roots:
            raise ValueError(f"{root[:100]} is unknown; a path starts with {' or '.join(sorted(roots))}")
        if root == SECRETS and not _names_secret(placeholder):
            raise ValueError("a secret is named like secrets.API_KEY: letters, digits and _, at most 64")


def uses(template: JsonValue) -> frozenset[str]:
    """What the paths of its placeholders start with. Raises `ValueError`."""
    return frozenset(placeholder.path[0] for placeholder in _placeholders(template))


def secret_names(template: JsonValue) -> frozenset[str]:
    """NAME of every `{{ secrets.NAME }}`. Raises `ValueError`."""
    return frozenset(placeholder.path[1] for placeholder in _placeholders(template) if _names_secret(placeholder))


def render(template: JsonValue, scope: dict[str, JsonValue]) -> JsonValue:
    """The template with its placeholders replaced.

    A text that is one placeholder becomes the value itself, of its type; within other text a value that is not a
    text becomes compact JSON. Raises `BlockError`, which no retry can mend: `template_invalid`,
    `template_missing_value`, `template_invalid_value`, `template_too_large`. What they say holds paths, never values.
    """
    return _renderer(template, scope).render(template)


def render_text(template: str, scope: dict[str, JsonValue]) -> str:
    """As `render`, but a text that is one placeholder becomes text as well."""
    return _renderer(template, scope).render_text(template)


def _renderer(template: JsonValue, scope: dict[str, JsonValue]) -> _Renderer:
    try:
        check(template, frozenset(scope))
    except ValueError as error:
        raise _refusal("template_invalid", str(error)) from None
    return _Renderer(scope)


class _Renderer:
    """Renders a checked template, and stops before the output is too large."""

    def __init__(self, scope: dict[str, JsonValue]) -> None:
        self._scope = scope
        self._bytes_left = MAX_OUTPUT_BYTES

    def render(self, template: JsonValue) -> JsonValue:
        if isinstance(template, str):
            return self._render_value(template)
        if isinstance(template, dict):
            return {key: self.render(value) for key, value in template.items()}
        if isinstance(template, list):
            return [self.render(value) for value in template]
        return template

    def render_text(self, text: str) -> str:
        return "".join(
            self._spend(part if isinstance(part, str) else self._interpolated(part)) for part in _parse(text)
        )

    def _render_value(self, text: str) -> JsonValue:
        parts = _parse(text)
        if len(parts) == 1 and isinstance(parts[0], Placeholder):
            value = _look_up(parts[0], self._scope)
            self._spend(_as_text(value, parts[0]))
            return value
        return self.render_text(text)

    def _interpolated(self, placeholder: Placeholder) -> str:
        return _as_text(_look_up(placeholder, self._scope), placeholder)

    def _spend(self, text: str) -> str:
        self._bytes_left -= len(text.encode(errors="surrogatepass"))
        if self._bytes_left < 0:
            raise _refusal("template_too_large", f"the result is larger than {MAX_OUTPUT_BYTES} bytes")
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


def _placeholders(template: JsonValue) -> list[Placeholder]:
    """All of them. Raises `ValueError`."""
    found: list[Placeholder] = []
    level = [template]
    for _ in range(MAX_DEPTH):
        for value in level:
            if isinstance(value, str):
                found.extend(part for part in _parse(value) if isinstance(part, Placeholder))
        if len(found) > MAX_PLACEHOLDERS:
            raise ValueError(f"more than {MAX_PLACEHOLDERS} placeholders")
        level = [child for value in level for child in _children(value)]
        if not level:
            return found
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _names_secret(placeholder: Placeholder) -> bool:
    root, *rest = placeholder.path
    return root == SECRETS and len(rest) == 1 and SECRET_NAME.fullmatch(rest[0]) is not None


def _children(value: JsonValue) -> list[JsonValue]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _look_up(placeholder: Placeholder, scope: dict[str, JsonValue]) -> JsonValue:
    try:
        return value_at(placeholder.path, scope)
    except LookupError:
        path = str(placeholder)[:200]
        missing = f"there is no {path}" if placeholder.path[0] == SECRETS else f"the message has no {path}"
        raise _refusal("template_missing_value", missing) from None


def _as_text(value: JsonValue, placeholder: Placeholder) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise _refusal("template_invalid_value", f"{str(placeholder)[:200]} is no valid JSON") from None


def _refusal(code: str, message: str) -> BlockError:
    return BlockError(code, message, retryable=False)
