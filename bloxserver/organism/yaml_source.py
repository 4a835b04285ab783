"""The text of a definition for YAML parsers, and places in it.

PyYAML implements YAML 1.1. It reads three characters as line breaks that are ordinary characters in YAML 1.2, JSON and
editors, and it rejects surrogate pairs, which JSON writers use for emojis. Both are replaced by substitutes of the same
length before parsing, so that all positions stay valid.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

LINE_BREAK = re.compile(r"\r\n|\r|\n")
NOT_BREAKS = "\x85\u2028\u2029"
"""Characters that are line breaks in YAML 1.1 only."""
SURROGATE_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\(u[dD][89abAB][0-9a-fA-F]{2})\\(u[dD][c-fC-F][0-9a-fA-F]{2})")
ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}")
FORBIDDEN_CHARACTER = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
REPLACEMENT = "\ufffd"


class Place(NamedTuple):
    """A position in the text. Both numbers count from 1, columns in characters."""

    line: int
    column: int


class Source:
    """A definition's text. `parseable` is the input for a parser; it has the same length, lines and columns."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._special = any(character in text for character in NOT_BREAKS) or SURROGATE_PAIR.search(text) is not None
        self.forbidden = [found.start() for found in FORBIDDEN_CHARACTER.finditer(text)]
        """The indexes of the characters that are not allowed in YAML."""

    @cached_property
    def _substitutes(self) -> tuple[str, ...]:
        """Characters that the text does not contain, also not escaped: for NOT_BREAKS and for a surrogate's backslash.

        A text within the size limit cannot contain all candidates.
        """
        taken = set(map(ord, self.text)) | {int(found[2:], 16) for found in ESCAPE.findall(self.text)}
        private = chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
        free = (chr(code) for code in private if code not in taken)
        return tuple(next(free) for _ in (*NOT_BREAKS, "\\"))

    @cached_property
    def parseable(self) -> str:
        text = FORBIDDEN_CHARACTER.sub(REPLACEMENT, self.text) if self.forbidden else self.text
        if not self._special:
            return text
        backslash = self._substitutes[-1]
        text = text.translate(dict(zip(map(ord, NOT_BREAKS), self._substitutes, strict=False)))
        return SURROGATE_PAIR.sub(rf"\1{backslash}\2{backslash}\3", text)

    def restored(self, value: str, style: str | None) -> str:
        """Return a scalar with its original characters. Only a double-quoted scalar has escape sequences."""
        if not self._special:
            return value
        backslash = self._substitutes[-1]
        value = value.translate(dict(zip(map(ord, self._substitutes), NOT_BREAKS, strict=False)))
        if style == '"':
            return re.sub(f"{backslash}u(....){backslash}u(....)", _character, value)
        return value.replace(backslash, "\\")

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(found.end() for found in LINE_BREAK.finditer(self.text))]

    def place(self, index: int) -> Place:
        """Return the place of the character at this index."""
        line = bisect_right(self._line_starts, index)
        return Place(line, index - self._line_starts[line - 1] + 1)

    def index(self, place: Place) -> int:
        """Return the index of the character at a place: the inverse of `place`."""
        return self._line_starts[place.line - 1] + place.column - 1

    def line(self, number: int) -> str:
        """Return a line without its line break, or an empty text if it does not exist."""
        starts = [*self._line_starts, len(self.text)]
        return self.text[starts[number - 1] : starts[number]].rstrip("\r\n") if number < len(starts) else ""

    def lines(self) -> list[str]:
        """Return all lines with their line breaks."""
        starts = [*self._line_starts, len(self.text)]
        lines = [self.text[start:stop] for start, stop in pairwise(starts)]
        return lines if lines[-1] else lines[:-1]


def _character(pair: re.Match[str]) -> str:
    high, low = int(pair[1], 16), int(pair[2], 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + low - 0xDC00)
