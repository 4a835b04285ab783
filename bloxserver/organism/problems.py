"""Problems of a definition, with their places."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""The path from the top of a document to a value: keys of mappings and indexes of lists."""

MAX_QUOTE = 80
MAX_PATH = 400
"""Approximate maximum length of a shortened path in characters."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error, which prevents the definition from running, or a warning.

    `line` and `column` count from 1, columns in characters. `code` is stable and in snake_case. `hint` is the fix.
    """

    line: int
    column: int
    code: str
    message: str
    hint: str
    severity: Literal["error", "warning"] = "error"
    path: Path = ()

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}; {self.hint}"


class OrganismError(Exception):
    """The definition cannot run. `problems` has its errors, at least one, in the order of the text.

    The message of the exception is the first error, suitable as the flow's errorMessage.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        more = len(problems) - 1
        rest = f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
        super().__init__(f"{problems[0]}{rest}")
        self.problems = list(problems)


def errors_of(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems that prevent the definition from running."""
    return [problem for problem in problems if problem.severity == "error"]


def shortened_path(path: Iterable[str | int]) -> list[str | int]:
    """Return a path with short keys. Thousands of problems below a long key would take much memory."""
    parts = [*path]
    longest = max(MAX_PATH // max(len(parts), 1), 16)
    return [f"{key[:longest]}…" if isinstance(key, str) and len(key) > longest else key for key in parts]


def quoted(text: str) -> str:
    """Return a user's text for a message: in double quotes, on one line, shortened to MAX_QUOTE characters."""
    shown = text if len(text) <= MAX_QUOTE else text[: MAX_QUOTE - 1] + "…"
    return json.dumps(shown, ensure_ascii=False)
