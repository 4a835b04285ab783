"""`{{ payload.path.to.value }}` in the texts of a JSON value, replaced by what it names.

A path is the name of a value in the scope, then keys of objects and indexes of lists, between dots. There are no
expressions, filters or attributes: a template can only copy. What was copied is not searched for placeholders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.json_values import value_at

MAX_PLACEHOLDERS = 100
MAX_OUTPUT_BYTES = 1024 * 1024
MAX_DEPTH = 64
ROOTS = frozenset({"payload", "input"})
SECRETS = "secrets"
SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


_WORD = r"""(?!(?:or|and|not|if|else|in|is|default)\b)(?=[^\s.]*\w)[^\s.\[\](){}|"'`&<>=!?+*/,;%~^\\]+"""
SEGMENT = re.compile(f"{_WORD}(?: +{_WORD})*")
"""What a key in a path may consist of: words without brackets, quotes or operators."""
INDEXED = re.compile(r"""\[\s*(?:(\d+)|"([^"\]]*)"|'([^'\]]*)')\s*\]""")
PLACEHOLDER = re.compile(r"\{\{.*?\}\}", re.DOTALL)
NOT_IN_PATH = re.compile(r"[\[\](){}|]|\?\.")
MAX_SHOWN = 100
COMPUTE = "compute the value before, in a transform with an expression"


@dataclass(frozen=True)
class Placeholder:
    path: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Defect:
    """A placeholder that cannot be replaced: where in the template it is, as it is written, why, and what to do."""

    path: tuple[str | int, ...]
    text: str
    message: str
    hint: str


class _Unreadable(ValueError):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def check(template: JsonValue, roots: frozenset[str] = ROOTS) -> None:
    """Raise `ValueError` for a template that cannot be rendered with a scope of these names, whatever is in it.

    Where secrets are among them, a path to one is `secrets.NAME`, and no other.
    """
    for defect in defects(template, roots):
        raise ValueError(f"{defect.message}; {defect.hint}")


def defects(template: JsonValue, roots: frozenset[str] = ROOTS) -> list[Defect]:
    """Everything for which `check` refuses the template, in the order of its texts."""
    found: list[Defect] = []
    placeholders = 0
    for path, text, is_key in _texts(template):
        if is_key is None:
            found.append(Defect(path, text, f"nested deeper than {MAX_DEPTH}", "make it flatter"))
            continue
        for written, part in _pieces(text):
            placeholders += 1
            defect = _defect(path, written, part, roots, is_key=is_key)
            if defect is not None:
                found.append(defect)
    if placeholders > MAX_PLACEHOLDERS:
        hint = "divide it between several listeners"
        found.append(Defect((), "", f"more than {MAX_PLACEHOLDERS} placeholders", hint))
    return found


def mentions(template: JsonValue, roots: Collection[str]) -> list[tuple[tuple[str | int, ...], str]]:
    """What looks like a placeholder with one of these names, in any text or key: where, and as it is written."""
    pattern = re.compile(rf"\{{\{{\s*(?:{'|'.join(sorted(roots))})\b[^{{}}]*(?:\}}\}})?")
    return [(path, found[0]) for path, text, _ in _texts(template) for found in pattern.finditer(text)]


def uses(template: JsonValue) -> frozenset[str]:
    """What the paths of its placeholders start with. Raises `ValueError`."""
    return frozenset(path[0] for path in paths(template))


def secret_names(template: JsonValue) -> frozenset[str]:
    """NAME of every `{{ secrets.NAME }}`. Raises `ValueError`."""
    return frozenset(path[1] for path in paths(template) if _names_secret(path))


def paths(template: JsonValue) -> list[tuple[str, ...]]:
    """The paths of all placeholders. Raises `ValueError`."""
    return [_parsed(part).path for _, text, is_key in _texts(template) if is_key is False for _, part in _pieces(text)]


def literal_parts(text: str) -> list[str]:
    """What stands in a text around its placeholders."""
    return PLACEHOLDER.split(text)


def check_path(path: str) -> tuple[str, ...]:
    """The names of a path within the message, like `user.name`. Raises `ValueError` with what to write instead.

    Unlike in a placeholder, any character but brackets and pipes may be in a name.
    """
    names = tuple(path.split("."))
    if not all(names) or NOT_IN_PATH.search(path):
        plain = _without_brackets(path)
        advice = f"write {plain}" if plain else "write names between dots"
        raise ValueError(f"{_shown(path)!r} is not a path like user.name; {advice}")
    return names


def render(template: JsonValue, scope: dict[str, JsonValue]) -> JsonValue:
    """The template with its placeholders replaced.

    A text that is one placeholder becomes the value itself, of its type; within other text a value that is not a
    text becomes compact JSON. Raises `BlockError`, which no retry can correct: `template_invalid`,
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


def _defect(
    path: tuple[str | int, ...], written: str, part: str | None, roots: frozenset[str], *, is_key: bool
) -> Defect | None:
    """What is wrong with one placeholder."""
    try:
        names = _parsed(part).path
    except _Unreadable as error:
        # A key may hold braces: only what was certainly meant as a placeholder is wrong in one.
        return None if is_key else Defect(path, written, str(error), error.hint)
    if is_key:
        if names[0] not in (*ROOTS, SECRETS):
            return None
        message = f"{_shown(written)} stands in a key, where placeholders are not replaced"
        return Defect(path, written, message, f"write the key out, or {COMPUTE}")
    if names[0] not in roots:
        nearest = next(iter(get_close_matches(names[0][:MAX_SHOWN], roots, n=1)), None)
        hint = f"did you mean {nearest}?" if nearest else f"a path starts with {' or '.join(sorted(roots))}"
        return Defect(path, written, f"{_shown(names[0])} is unknown in {_shown(written)}", hint)
    if names[0] == SECRETS and not _names_secret(names):
        message = f"{_shown(written)} names no secret"
        return Defect(
            path, written, message, "a secret is named like secrets.API_KEY: letters, digits and _, at most 64"
        )
    return None


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    """Each placeholder as it is written, and what stands in it; null where it has no end."""
    position = 0
    while (start := text.find("{{", position)) >= 0:
        end = text.find("}}", start)
        if end < 0:
            yield "{{", None
            return
        position = end + 2
        yield text[start:position], text[start + 2 : end]


def _parse(text: str) -> list[str | Placeholder]:
    """The text cut at its placeholders, without empty pieces. Raises `ValueError`."""
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
        raise _Unreadable("a {{ has no }}", "add }} behind the path")
    path = part.strip()
    names = tuple(path.split("."))
    if not all(SEGMENT.fullmatch(name) for name in names):
        raise _Unreadable(f"{_shown('{{' + part + '}}')} is not a path like payload.user.name", _advice(path))
    return Placeholder(names)


def _advice(path: str) -> str:
    """What to write instead of something that is not a path."""
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
    """The path with dots where other languages have brackets, if that makes it one."""
    names = INDEXED.sub(lambda found: f".{found[1] or found[2] or found[3] or ''}", path.replace("?.", "."))
    return names if names != path and all(SEGMENT.fullmatch(name) for name in names.split(".")) else None


def _shown(text: str) -> str:
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return " ".join(shown.split())


def _texts(template: JsonValue) -> Iterator[tuple[tuple[str | int, ...], str, bool | None]]:
    """All texts with their paths, and whether they are keys; null for the first value that lies too deep."""
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
