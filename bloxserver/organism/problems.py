"""What is wrong with a definition, and where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""The way from the top of a document to one of its values: keys, and indexes into lists."""

MAX_QUOTE = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to repair. `line` and `column` count characters from 1; `code` is stable and snake_case.

    A definition with an error does not run; one with nothing but warnings does. `hint` says what to do.
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
    """A definition that cannot run. `problems` holds its errors, at least one, in the order of the text.

    As text it is the first of them, fit for a flow's errorMessage.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        more = len(problems) - 1
        rest = f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
        super().__init__(f"{problems[0]}{rest}")
        self.problems = list(problems)


def quoted(text: str) -> str:
    """What a user wrote, on one line, in double quotes, cut where it is too long for a message."""
    shown = text if len(text) <= MAX_QUOTE else text[: MAX_QUOTE - 1] + "…"
    return json.dumps(shown, ensure_ascii=False)
