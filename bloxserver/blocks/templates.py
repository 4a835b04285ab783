"""Templates: JSON values with placeholders like `{{ payload.path.to.value }}` in their texts.

A path consists of a name in the scope, then object keys and list indexes, separated by dots. There are no expressions,
filters or attributes: a template only copies values. Copied values are not searched for placeholders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.values import Budget
from bloxserver.blocks.json_values import consume_values, value_at

MAX_PLACEHOLDERS = 100
MAX_OUTPUT_BYTES = 1024 * 1024
MAX_DEPTH = 64
STEPS_PER_TEMPLATE_VALUE = 12
STEPS_PER_PLACEHOLDER = 120
CHARACTERS_PER_REGEX_STEP = 8
ROOTS = frozenset({"payload", "input"})
SECRETS = "secrets"
SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


_WORD = r"""(?!(?:or|and|not|if|else|in|is|default)\b)(?=[^\s.]*\w)[^\s.\[\](){}|"'`&<>=!?+*/,;%~^\\]+"""
SEGMENT = re.compile(f"{_WORD}(?: +{_WORD})*")
"""A key in a path: words without brackets, quotes or operators."""
INDEXED = re.compile(r"""\[\s*(?:(\d+)|"([^"\]]*)"|'([^'\]]*)')\s*\]""")
PLACEHOLDER = re.compile(r"\{\{.*?\}\}", re.DOTALL)
NOT_IN_PATH = re.compile(r"[\[\](){}|]|\?\.")
MAX_SHOWN = 100
COMPUTE = "compute the value in a transform with an expression before this listener"


@dataclass(frozen=True)
class Placeholder:
    path: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class TemplateProblem:
    """An invalid placeholder: its path in the template, its text, the reason and a hint."""

    path: tuple[str | int, ...]
    text: str
    message: str
    hint: str


class _InvalidPlaceholder(ValueError):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def check(template: JsonValue, roots: frozenset[str] = ROOTS, budget: Budget | None = None) -> None:
    """Raise `ValueError` for a template that is invalid for every scope with these names.

    If `secrets` is one of them, the only path to a secret is `secrets.NAME`. With `budget`, raises `CostLimitExceeded`.
    """
    for problem in problems(template, roots, budget):
        raise ValueError(f"{problem.message}; {problem.hint}")


def problems(template: JsonValue, roots: frozenset[str] = ROOTS, budget: Budget | None = None) -> list[TemplateProblem]:
    """Return all reasons for which `check` rejects the template, in the order of its texts."""
    found: list[TemplateProblem] = []
    placeholders = 0
    for path, text, is_key in _texts(template):
        if is_key is None:
            message = f"nested more than {MAX_DEPTH} levels deep"
            found.append(TemplateProblem(path, text, message, "reduce the nesting"))
            continue
        for written, part in _pieces(text):
            placeholders += 1
            if budget is not None:
                budget.consume(STEPS_PER_PLACEHOLDER + len(written) // CHARACTERS_PER_REGEX_STEP)
            problem = _problem(path, written, part, roots, is_key=is_key)
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


def used_roots(template: JsonValue) -> frozenset[str]:
    """Return the first names of the paths of all placeholders. Raises `ValueError`."""
    return frozenset(path[0] for path in paths(template))


def secret_names(template: JsonValue) -> frozenset[str]:
    """Return the NAME of every `{{ secrets.NAME }}`. Raises `ValueError`."""
    return frozenset(path[1] for path in paths(template) if _names_secret(path))


def paths(template: JsonValue) -> list[tuple[str, ...]]:
    """Return the paths of all placeholders. Raises `ValueError`."""
    return [_parsed(part).path for _, text, is_key in _texts(template) if is_key is False for _, part in _pieces(text)]


def literal_parts(text: str) -> list[str]:
    """Return the parts of a text outside of its placeholders."""
    return PLACEHOLDER.split(text)


def check_path(path: str) -> tuple[str, ...]:
    """Return the names of a path within the message, like `user.name`. Raises `ValueError` with a hint.

    Unlike in a placeholder, a name may contain any character except brackets and pipes.
    """
    names = tuple(path.split("."))
    if not all(names) or NOT_IN_PATH.search(path):
        plain = _without_brackets(path)
        hint = f"write {plain}" if plain else "separate names with dots"
        raise ValueError(f"{_shown(path)!r} is not a path like user.name; {hint}")
    return names


def render(template: JsonValue, scope: dict[str, JsonValue], budget: Budget) -> JsonValue:
    """Return the template with its placeholders replaced.

    A text that is a single placeholder becomes the value itself, with its type. Within other text, a value that is not
    text becomes compact JSON. Raises `CostLimitExceeded`, and `BlockError`, which is not retryable: `template_invalid`,
    `template_missing_value`, `template_invalid_value`, `template_too_large`. The messages contain paths, never values.
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
    try:
        check(template, frozenset(scope), budget)
    except ValueError as error:
        raise _error("template_invalid", str(error)) from None
    return _Renderer(scope, budget)


class _Renderer:
    """Renders a checked template, and stops if the output becomes too large."""

    def __init__(self, scope: dict[str, JsonValue], budget: Budget) -> None:
        self._scope = scope
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
            self._consume(part if isinstance(part, str) else self._interpolated(part)) for part in _parse(text)
        )

    def _render_value(self, text: str) -> JsonValue:
        parts = _parse(text)
        if len(parts) == 1 and isinstance(parts[0], Placeholder):
            value = _look_up(parts[0], self._scope)
            self._consume(self._text_of(value, parts[0]))
            return value
        return self.render_text(text)

    def _interpolated(self, placeholder: Placeholder) -> str:
        return self._text_of(_look_up(placeholder, self._scope), placeholder)

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
    path: tuple[str | int, ...], written: str, part: str | None, roots: frozenset[str], *, is_key: bool
) -> TemplateProblem | None:
    """Return the problem of a placeholder, or None if it is valid."""
    try:
        names = _parsed(part).path
    except _InvalidPlaceholder as error:
        # A key may contain braces. Only a valid placeholder in a key is reported.
        return None if is_key else TemplateProblem(path, written, str(error), error.hint)
    if is_key:
        if names[0] not in (*ROOTS, SECRETS):
            return None
        message = f"{_shown(written)} is in a key, where placeholders are not replaced"
        return TemplateProblem(path, written, message, f"write a fixed key, or {COMPUTE}")
    if names[0] not in roots:
        nearest = next(iter(get_close_matches(names[0][:MAX_SHOWN], roots, n=1)), None)
        hint = f"did you mean {nearest}?" if nearest else f"a path must start with {' or '.join(sorted(roots))}"
        return TemplateProblem(path, written, f"{_shown(names[0])} is unknown in {_shown(written)}", hint)
    if names[0] == SECRETS and not _names_secret(names):
        message = f"{_shown(written)} is not a path to a secret"
        return TemplateProblem(
            path, written, message, "write secrets.NAME with a name of at most 64 letters, digits and _"
        )
    return None


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each placeholder's text and content. The content is None if the placeholder is not closed."""
    position = 0
    while (start := text.find("{{", position)) >= 0:
        end = text.find("}}", start)
        if end < 0:
            yield "{{", None
            return
        position = end + 2
        yield text[start:position], text[start + 2 : end]


def _parse(text: str) -> list[str | Placeholder]:
    """Split a text at its placeholders, without empty parts. Raises `ValueError`."""
    parts: list[str | Placeholder] = []
    position = 0
    for written, part in _pieces(text):
        start = text.index(written, position)
        if start > position:
            parts.append(text[position:start])
        parts.append(_parsed(part))
        position = start + len(written)
    if position < len(text):
        parts.append(text[position:])
    return parts


def _parsed(part: str | None) -> Placeholder:
    if part is None:
        raise _InvalidPlaceholder("a {{ has no }}", "add }} after the path")
    path = part.strip()
    names = tuple(path.split("."))
    if not all(SEGMENT.fullmatch(name) for name in names):
        raise _InvalidPlaceholder(f"{_shown('{{' + part + '}}')} is not a path like payload.user.name", _hint(path))
    return Placeholder(names)


def _hint(path: str) -> str:
    """Return a hint for a text that is not a path."""
    if not path or "{" in path:
        return "write the path of a value between {{ and }}"
    if plain := _without_brackets(path):
        return f"write {{{{ {_shown(plain)} }}}}"
    head = SEGMENT.match(path)
    value = path[: head.end()] if head else "payload"
    while head is not None and path[head.end() : head.end() + 1] == ".":
        head = SEGMENT.match(path, head.end() + 1)
        value = path[: head.end()] if head else value
    if re.search(r"\|\||\?\?|\bor\b|\bdefault\b|\?", path) and "." in value:
        return f'{COMPUTE}: has({_shown(value)}) ? {_shown(value)} : "…"'
    return f"a placeholder copies a value and has no operators or filters; {COMPUTE}"


def _without_brackets(path: str) -> str | None:
    """Return the path with dots instead of brackets, if the result is a valid path."""
    names = INDEXED.sub(lambda found: f".{found[1] or found[2] or found[3] or ''}", path.replace("?.", "."))
    return names if names != path and all(SEGMENT.fullmatch(name) for name in names.split(".")) else None


def _shown(text: str) -> str:
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return " ".join(shown.split())


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


def _names_secret(path: tuple[str, ...]) -> bool:
    root, *rest = path
    return root == SECRETS and len(rest) == 1 and SECRET_NAME.fullmatch(rest[0]) is not None


def _children(value: JsonValue) -> Iterable[tuple[str | int, JsonValue]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _look_up(placeholder: Placeholder, scope: dict[str, JsonValue]) -> JsonValue:
    try:
        return value_at(placeholder.path, scope)
    except LookupError:
        path = str(placeholder)[:200]
        missing = f"there is no {path}" if placeholder.path[0] == SECRETS else f"the message has no {path}"
        raise _error("template_missing_value", missing) from None


def _as_text(value: JsonValue, placeholder: Placeholder) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise _error("template_invalid_value", f"{str(placeholder)[:200]} is not valid JSON") from None


def _error(code: str, message: str) -> BlockError:
    return BlockError(code, message, retryable=False)
