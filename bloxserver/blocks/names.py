"""The names that expressions and placeholders can refer to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydantic import JsonValue

INPUT = "input"
MESSAGE_NAMES = frozenset({"payload", INPUT})
INDEX = "index"
"""The position of an item. It has a value only in the config of a listener with `for_each`."""
MESSAGE_ROOTS = MESSAGE_NAMES | {"steps", "trigger", "execution", "vars", "resume"}
"""The names in expressions about a whole message."""
ROOTS = MESSAGE_ROOTS | {INDEX}
CONDITION_NAMES = {"answer": MESSAGE_ROOTS, "error": MESSAGE_ROOTS | {"error"}}
"""The names in the condition of a peer, by what it receives."""
SECRETS = "secrets"
SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
STEPS = "steps"
MENTIONED = re.compile("|".join(rf"\b{name}\b" for name in sorted(ROOTS - {"payload"})))
STEP_NAME = re.compile(
    r"""\bsteps\s*
    (?:(?:\.\s*get\s*\(|\[)\s*(?P<quote>["'])(?P<quoted>[^"'\\]*)(?P=quote)
    |\.\s*(?P<segment>(?P<identifier>\w+)[^\s.\[\](){}|"'`&<>=!?+*/,;%~^\\]*))""",
    re.VERBOSE,
)
"""`steps.NAME` in an expression or as a path, `steps["NAME"]`, and `steps.get("NAME")` in Python."""


def read_names(values: Iterable[JsonValue]) -> frozenset[str]:
    """Return the names besides `payload` that the texts in these values may refer to.

    The values of other names need not be available. A name too many has no effect.
    """
    return frozenset(name for text in _texts(values) for name in MENTIONED.findall(text))


def read_steps(values: Iterable[JsonValue]) -> frozenset[str]:
    """Return the names of the listeners whose answers the texts in these values may refer to.

    As for `read_names`, there may be too many.
    """
    return frozenset(name for text in _texts(values) if STEPS in text for name in _names_in(text))


def _names_in(text: str) -> Iterator[str]:
    for found in STEP_NAME.finditer(text):
        yield from filter(None, found.group("segment", "identifier", "quoted"))


def _texts(values: Iterable[JsonValue]) -> Iterator[str]:
    pending = [*values]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
