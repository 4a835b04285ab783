"""The syntax of placeholders: paths like `{{ payload.user.name }}`, and expressions like `{{ upper(payload.name) }}`.

A path consists of a name, then object keys and list indexes, separated by dots. Everything else is an expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from bloxserver.blocks.cel import nodes, type_check
from bloxserver.blocks.cel.nodes import Node
from bloxserver.blocks.cel.values import Budget
from bloxserver.blocks.expressions import Expression, compile_expression
from bloxserver.blocks.names import INDEX, SECRET_NAME, SECRETS

_WORD = r"""(?=[^\s.]*\w)[^\s.\[\](){}|"'`&<>=!?+*/,;%~^\\]+"""
_OPERATOR = r"(?:or|and|not|if|else|in|is|default)\b"
SEGMENT = re.compile(f"{_WORD}(?: +(?!{_OPERATOR}){_WORD})*")
"""A key in a path: words without brackets, quotes or operators. A key can be `default`, but `x or y` is not a key."""
INDEXED = re.compile(r"""\[\s*(?:(\d+)|"([^"\]]*)"|'([^'\]]*)')\s*\]""")
CONSTANT = re.compile(r"true|false|null|-?\d.*")
SCANNED = re.compile(
    r"""(?P<text>[rR]?(?:\"\"\"[\s\S]*?\"\"\"|'''[\s\S]*?'''|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
    |(?P<open>\{)|(?P<close>\}\}?)""",
    re.VERBOSE,
)
"""The parts of an expression that decide where its placeholder ends."""
MENTIONED_SECRET = re.compile(rf"\b{SECRETS}\s*[.\[]")
MAX_SHOWN = 100


@dataclass(frozen=True)
class Placeholder:
    """A path, or an expression. `text` is its content without the braces."""

    text: str
    path: tuple[str, ...] = ()
    expression: Expression | None = None

    def __str__(self) -> str:
        return self.text[: 2 * MAX_SHOWN]

    @property
    def paths(self) -> list[tuple[str, ...]]:
        """The paths of the values that it refers to."""
        return [self.path] if self.expression is None else list(paths_in(self.expression.program))


class InvalidPlaceholder(ValueError):
    """The placeholder is neither a path nor an expression."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def pieces(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each placeholder's text and content. The content is None if the placeholder is not closed."""
    position = 0
    while (start := text.find("{{", position)) >= 0:
        end = _end(text, start + 2)
        if end is None:
            yield "{{", None
            return
        position = end + 2
        yield text[start:position], text[start + 2 : end]


def _end(text: str, begin: int) -> int | None:
    """Return the position of the braces that close a placeholder."""
    first = text.find("}}", begin)
    if first < 0 or is_path(text[begin:first]):
        return first if first >= 0 else None
    depth, position = 0, begin
    while (found := SCANNED.search(text, position)) is not None:
        position = found.end()
        if found["open"]:
            depth += 1
        elif found["close"]:
            if depth == 0 and len(found["close"]) == 2:
                return found.start()
            depth = max(0, depth - 1)
            position = found.start() + 1
    return first


def is_path(part: str) -> bool:
    """Return whether the content of a placeholder has the form of a path."""
    return all(SEGMENT.fullmatch(name) for name in part.strip().split("."))


def parse_placeholder(part: str | None, roots: frozenset[str], budget: Budget | None = None) -> Placeholder:
    """Parse the content of a placeholder, None for one that is not closed. A path can begin with any name.

    Raises `InvalidPlaceholder`, and `CostLimitExceeded` with `budget`. Without, the types of expressions are checked.
    """
    if part is None:
        raise InvalidPlaceholder("a {{ has no }}", "add }} after the path")
    text = part.strip()
    names = tuple(text.split("."))
    if is_path(text) and (names[0] in roots or not CONSTANT.fullmatch(text)):
        return Placeholder(text, names)
    if not text or roots <= {SECRETS}:
        message = f"{shown('{{' + part + '}}')} is not a path like payload.user.name"
        raise InvalidPlaceholder(message, "write the path of a value between {{ and }}")
    try:
        expression = compile_expression(text, roots - {SECRETS}, budget=budget)
        if budget is None:
            type_check.check(expression.program)
    except ValueError as error:
        message = f"{shown('{{' + part + '}}')} is neither a path nor a valid expression: {error}"
        raise InvalidPlaceholder(message, _hint(text)) from None
    return Placeholder(text, expression=expression)


def unknown_root_hint(root: str, roots: frozenset[str]) -> str:
    """Return a hint for a path that begins with an unknown name."""
    if root == INDEX:
        return "only the config of a listener with for_each has an index"
    nearest = next(iter(get_close_matches(root[:MAX_SHOWN], roots, n=1)), None)
    return f"did you mean {nearest}?" if nearest else f"a path must start with {' or '.join(sorted(roots))}"


def names_secret(path: tuple[str, ...]) -> bool:
    root, *rest = path
    return root == SECRETS and len(rest) == 1 and SECRET_NAME.fullmatch(rest[0]) is not None


def without_brackets(path: str) -> str | None:
    """Return the path with dots instead of brackets, if the result is a valid path."""
    plain = INDEXED.sub(lambda found: f".{found[1] or found[2] or found[3] or ''}", path.replace("?.", "."))
    return plain if plain != path and is_path(plain) else None


def shown(text: str) -> str:
    """Return a text for a message, in one line and shortened."""
    short = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return " ".join(short.split())


def _hint(text: str) -> str:
    """Return a hint for a text that is neither a path nor a valid expression."""
    if "{{" in text:
        return 'write a placeholder within a placeholder as one expression, and a literal {{ as {{ "{{" }}'
    if MENTIONED_SECRET.search(text):
        return "a secret must be a placeholder of its own, like {{ secrets.NAME }}"
    if "?." in text and (plain := without_brackets(text)):
        return f"write {{{{ {shown(plain)} }}}}"
    if re.search(r"\|\||\?\?|\bor\b|\|\s*default\b", text):
        return 'for another value if one is missing, write default(payload.name, "…")'
    if re.search(r"[^|]\|\s*\w", text):
        return "a filter is a function, like upper(payload.name)"
    return "write a path like payload.user.name, or a CEL expression"


def paths_in(node: Node) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the values that an expression refers to."""
    path = path_of(node)
    if path is not None:
        yield path
        return
    for child in node.children:
        yield from paths_in(child)


def path_of(node: Node) -> tuple[str, ...] | None:
    """Return the path that an expression is, like `payload.items[0]`; None for other expressions."""
    match node:
        case nodes.Has():
            return None
        case nodes.Name():
            return (node.name,)
        case nodes.Select():
            inner = path_of(node.operand)
            return None if inner is None else (*inner, node.field)
        case nodes.Index(index=nodes.Constant(value=str() | int() as key)):
            inner = path_of(node.operand)
            return None if inner is None else (*inner, str(key))
    return None
