"""Templates: JSON values with placeholders like `{{ payload.path.to.value }}` or `{{ upper(payload.name) }}` in their
texts.

The values of placeholders are not searched for placeholders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.values import Budget
from bloxserver.blocks.json_values import consume_values, value_at
from bloxserver.blocks.names import MESSAGE_NAMES, ROOTS, SECRETS
from bloxserver.blocks.placeholder_syntax import (
    InvalidPlaceholder,
    Placeholder,
    is_path,
    names_secret,
    parse_placeholder,
    pieces,
    shown,
    unknown_root_hint,
    without_brackets,
)

MAX_PLACEHOLDERS = 100
MAX_OUTPUT_BYTES = 1024 * 1024
MAX_DEPTH = 64
STEPS_PER_TEMPLATE_VALUE = 12
STEPS_PER_PLACEHOLDER = 120
CHARACTERS_PER_REGEX_STEP = 8
PLACEHOLDER = re.compile(r"\{\{.*?\}\}", re.DOTALL)
NOT_IN_PATH = re.compile(r"[\[\](){}|]|\?\.")
COMPUTE = "compute the value in a transform with an expression before this listener"


@dataclass(frozen=True)
class TemplateProblem:
    """An invalid placeholder: its path in the template, its text, the reason and a hint."""

    path: tuple[str | int, ...]
    text: str
    message: str
    hint: str
    is_in_key: bool = False
    """Whether the placeholder is in a key. The template is valid, and the key is used unchanged."""


def check(template: JsonValue, roots: frozenset[str] = ROOTS, budget: Budget | None = None) -> None:
    """Raise `ValueError` for a template that is invalid for every scope with these names.

    If `secrets` is one of them, the only path to a secret is `secrets.NAME`. With `budget`, raises `CostLimitExceeded`.
    """
    for problem in problems(template, roots, budget):
        if not problem.is_in_key:
            raise ValueError(f"{problem.message}; {problem.hint}")


def problems(template: JsonValue, roots: frozenset[str] = ROOTS, budget: Budget | None = None) -> list[TemplateProblem]:
    """Return all problems of the template in the order of its texts. `check` rejects those that are not in keys."""
    found: list[TemplateProblem] = []
    placeholders = 0
    for path, text, is_key in _texts(template):
        if is_key is None:
            message = f"nested more than {MAX_DEPTH} levels deep"
            found.append(TemplateProblem(path, text, message, "reduce the nesting"))
            continue
        for written, part in pieces(text):
            placeholders += 1
            if budget is not None:
                budget.consume(STEPS_PER_PLACEHOLDER + len(written) // CHARACTERS_PER_REGEX_STEP)
            problem = _problem(path, written, part, roots, budget, is_key=is_key)
            if problem is not None:
                found.append(problem)
    if placeholders > MAX_PLACEHOLDERS:
        hint = "divide it between several listeners"
        found.append(TemplateProblem((), "", f"more than {MAX_PLACEHOLDERS} placeholders", hint))
    return found


def mentions(template: JsonValue, roots: Collection[str]) -> list[tuple[tuple[str | int, ...], str]]:
    """Return the path and the text of everything that looks like a placeholder with one of these names."""
    pattern = re.compile(rf"\{{\{{\s*(?:{'|'.join(sorted(roots))})\b[^{{}}]*(?:\}}\}})?")
    return [(path, found[0]) for path, text, _ in _texts(template) for found in pattern.finditer(text)]


def has_placeholders(template: JsonValue) -> bool:
    """Return whether a text that is not a key contains a placeholder."""
    return any(True for _, text, is_key in _texts(template) if is_key is False for _ in pieces(text))


def secret_names(template: JsonValue) -> frozenset[str]:
    """Return the NAME of every `{{ secrets.NAME }}`. Raises `ValueError`."""
    return frozenset(path[1] for path in paths(template) if names_secret(path))


def paths(template: JsonValue) -> list[tuple[str, ...]]:
    """Return the paths of the values that placeholders refer to. Raises `ValueError`."""
    return [path for placeholder in placeholders(template) for path in placeholder.paths]


def placeholders(template: JsonValue, roots: frozenset[str] = ROOTS | {SECRETS}) -> list[Placeholder]:
    """Return all placeholders. Raises `ValueError`."""
    texts = (text for _, text, is_key in _texts(template) if is_key is False)
    return [parse_placeholder(part, roots) for text in texts for _, part in pieces(text)]


def located_placeholders(template: JsonValue) -> Iterator[tuple[tuple[str | int, ...], Placeholder]]:
    """Yield all placeholders with the paths of their texts. Raises `ValueError`."""
    for path, text, is_key in _texts(template):
        if is_key is False:
            for _, part in pieces(text):
                yield path, parse_placeholder(part, ROOTS | {SECRETS})


def literal_parts(text: str) -> list[str]:
    """Return the parts of a text outside of its placeholders."""
    parts: list[str] = []
    position = 0
    for written, _ in pieces(text):
        start = text.index(written, position)
        parts.append(text[position:start])
        position = start + len(written)
    return [*parts, text[position:]]


def is_placeholder(text: str) -> bool:
    """Return whether a text consists of one placeholder."""
    return [written for written, part in pieces(text) if part is not None] == [text]


def check_path(path: str) -> tuple[str, ...]:
    """Return the names of a path within the message, like `user.name`. Raises `ValueError` with a hint.

    Unlike in a placeholder, a name may contain any character except brackets and pipes.
    """
    names = tuple(path.split("."))
    if not all(names) or NOT_IN_PATH.search(path):
        plain = without_brackets(path)
        hint = f"write {plain}" if plain else "separate names with dots"
        raise ValueError(f"{shown(path)!r} is not a path like user.name; {hint}")
    return names


def render(template: JsonValue, scope: dict[str, JsonValue], budget: Budget) -> JsonValue:
    """Return the template with its placeholders replaced.

    A text that is a single placeholder becomes the value itself, with its type. Within other text, a value that is not
    text becomes compact JSON. Raises `CostLimitExceeded`, and `BlockError`, which is not retryable: `template_invalid`,
    `template_missing_value`, `template_invalid_value`, `template_too_large`, `expression_failed`. The messages contain
    paths and expressions, never values.
    """
    return _renderer(template, scope, budget).render(template)


def render_text(template: str, scope: dict[str, JsonValue], budget: Budget) -> str:
    """Like `render`, but a text that is a single placeholder becomes text too."""
    return _renderer(template, scope, budget).render_text(template)


def insert_secrets(template: JsonValue, secrets: Mapping[str, str]) -> JsonValue:
    """Return the template with `{{ secrets.NAME }}` replaced for these names only. Other placeholders are kept."""
    if isinstance(template, str):
        return PLACEHOLDER.sub(lambda found: _secret_value(found[0], secrets), template)
    if isinstance(template, dict):
        return {key: insert_secrets(value, secrets) for key, value in template.items()}
    if isinstance(template, list):
        return [insert_secrets(value, secrets) for value in template]
    return template


def _renderer(template: JsonValue, scope: dict[str, JsonValue], budget: Budget) -> _Renderer:
    consume_values(template, budget, STEPS_PER_TEMPLATE_VALUE)
    # A name that has no value here, as `index` outside of a loop, is a missing value.
    roots = frozenset(scope) | ROOTS if "payload" in scope else frozenset(scope)
    try:
        check(template, roots, budget)
    except ValueError as error:
        raise _error("template_invalid", str(error)) from None
    return _Renderer(scope, roots, budget)


class _Renderer:
    """Renders a checked template, and stops if the output becomes too large."""

    def __init__(self, scope: dict[str, JsonValue], roots: frozenset[str], budget: Budget) -> None:
        self._scope = scope
        self._roots = roots
        self._budget = budget
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
            self._consume(part if isinstance(part, str) else self._interpolated(part)) for part in self._parts(text)
        )

    def _render_value(self, text: str) -> JsonValue:
        parts = self._parts(text)
        if len(parts) == 1 and isinstance(parts[0], Placeholder):
            value = self._value_of(parts[0])
            self._consume(self._text_of(value, parts[0]))
            return value
        return self.render_text(text)

    def _parts(self, text: str) -> list[str | Placeholder]:
        """Split a text at its placeholders, without empty parts."""
        parts: list[str | Placeholder] = []
        position = 0
        for written, part in pieces(text):
            start = text.index(written, position)
            if start > position:
                parts.append(text[position:start])
            parts.append(parse_placeholder(part, self._roots, self._budget))
            position = start + len(written)
        if position < len(text):
            parts.append(text[position:])
        return parts

    def _interpolated(self, placeholder: Placeholder) -> str:
        return self._text_of(self._value_of(placeholder), placeholder)

    def _value_of(self, placeholder: Placeholder) -> JsonValue:
        if placeholder.expression is not None:
            return placeholder.expression.evaluate(self._scope, self._budget)
        return _look_up(placeholder, self._scope)

    def _text_of(self, value: JsonValue, placeholder: Placeholder) -> str:
        consume_values(value, self._budget)
        return _as_text(value, placeholder)

    def _consume(self, text: str) -> str:
        self._bytes_left -= len(text.encode(errors="surrogatepass"))
        if self._bytes_left < 0:
            raise _error("template_too_large", f"the result exceeds {MAX_OUTPUT_BYTES} bytes")
        return text


def _secret_value(written: str, secrets: Mapping[str, str]) -> str:
    root, _, name = written.removeprefix("{{").removesuffix("}}").strip().partition(".")
    return secrets.get(name, written) if root == SECRETS else written


def _problem(
    path: tuple[str | int, ...],
    written: str,
    part: str | None,
    roots: frozenset[str],
    budget: Budget | None,
    *,
    is_key: bool,
) -> TemplateProblem | None:
    """Return the problem of a placeholder, or None if it is valid."""
    if is_key:
        return _key_problem(path, written, part)
    try:
        placeholder = parse_placeholder(part, roots, budget)
    except InvalidPlaceholder as error:
        return TemplateProblem(path, written, str(error), error.hint)
    names = placeholder.path
    if placeholder.expression is not None:
        return None
    if names[0] not in roots:
        hint = unknown_root_hint(names[0], roots)
        return TemplateProblem(path, written, f"{shown(names[0])} is unknown in {shown(written)}", hint)
    if names[0] == SECRETS and not names_secret(names):
        message = f"{shown(written)} is not a path to a secret"
        return TemplateProblem(
            path, written, message, "write secrets.NAME with a name of at most 64 letters, digits and _"
        )
    return None


def _key_problem(path: tuple[str | int, ...], written: str, part: str | None) -> TemplateProblem | None:
    """A key may contain braces. Only a path to a value of the message, or to a secret, is reported."""
    names = () if part is None else tuple(part.strip().split("."))
    if part is None or not is_path(part) or names[0] not in (*MESSAGE_NAMES, SECRETS):
        return None
    message = f"{shown(written)} is in a key, where placeholders are not replaced"
    return TemplateProblem(path, written, message, f"write a fixed key, or {COMPUTE}", is_in_key=True)


def _texts(template: JsonValue) -> Iterator[tuple[tuple[str | int, ...], str, bool | None]]:
    """Yield all texts with their paths, and whether they are keys; None for a value that is nested too deeply."""
    level: list[tuple[tuple[str | int, ...], JsonValue]] = [((), template)]
    for _ in range(MAX_DEPTH):
        for path, value in level:
            if isinstance(value, str):
                yield path, value, False
            elif isinstance(value, dict):
                yield from ((((*path, key)), key, True) for key in value if "{{" in key)
        level = [((*path, key), child) for path, value in level for key, child in _children(value)]
        if not level:
            return
    yield level[0][0], "", None


def _children(value: JsonValue) -> Iterable[tuple[str | int, JsonValue]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _look_up(placeholder: Placeholder, scope: dict[str, JsonValue]) -> JsonValue:
    try:
        return value_at(placeholder.path, scope)
    except LookupError:
        path = str(placeholder)
        missing = f"there is no {path}" if placeholder.path[0] == SECRETS else f"the message has no {path}"
        raise _error("template_missing_value", missing) from None


def _as_text(value: JsonValue, placeholder: Placeholder) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise _error("template_invalid_value", f"{placeholder} is not valid JSON") from None


def _error(code: str, message: str) -> BlockError:
    return BlockError(code, message, retryable=False)
