"""The functions of texts, and those that texts and lists share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bloxserver.blocks.cel.number_functions import whole
from bloxserver.blocks.cel.values import (
    CHARACTERS_PER_STEP,
    COMPARISONS_PER_STEP,
    EvaluationError,
    Run,
    contains_item,
    kind_of,
)

CHARACTERS_OF_CASE = 16
"""The characters outside of ASCII whose case is changed in a step."""
_QUADRATIC_TEXT = 2_500
_QUADRATIC_PART = 100
_QUADRATIC_TEXT_OF_LONG_PART = 30_000


def contains(run: Run, container: Any, part: Any) -> bool:
    if isinstance(container, list):
        return contains_item(container, part, run)
    if not isinstance(part, str):
        raise EvaluationError(f"contains requires a text as its argument, not {kind_of(part)}")
    _consume_search(run, container, part)
    return part in container


def _consume_search(run: Run, text: str, part: str) -> None:
    """Consume the steps of a search, in addition to those for its arguments.

    Python searches long texts in linear time. In the cases below, it compares the part at each position of the text.
    """
    run.budget.consume(len(text) // CHARACTERS_PER_STEP)
    if len(text) < _QUADRATIC_TEXT or (len(part) >= _QUADRATIC_PART and len(text) < _QUADRATIC_TEXT_OF_LONG_PART):
        run.budget.consume(max(0, len(text) - len(part)) * len(part) // COMPARISONS_PER_STEP)


def index_of(run: Run, text: str, part: str) -> int:
    _consume_search(run, text, part)
    return text.find(part)


def last_index_of(run: Run, text: str, part: str) -> int:
    _consume_search(run, text, part)
    # str.rfind takes the product of both lengths in the worst case.
    run.budget.consume((len(text) + len(part)) // CHARACTERS_PER_STEP)
    found = text[::-1].find(part[::-1])
    return found if found < 0 else len(text) - len(part) - found


def _count(run: Run, text: str, part: str) -> int:
    """Count the occurrences, and consume the steps of this search and of another one that stops at each of them."""
    _consume_search(run, text, part)
    found = text.count(part)
    _consume_search(run, text, part)
    run.budget.consume(3 * found)
    return found


def part_between(name: str) -> Callable[..., Any]:
    """Return a function for the part of a text or list between two indexes."""

    def cut(run: Run, value: Any, start: int | float, end: int | float | None = None) -> Any:
        first, last = whole(name, start), len(value) if end is None else whole(name, end)
        if not 0 <= first <= last <= len(value):
            raise EvaluationError(f"{name} from {first} to {last} is outside of 0 to {len(value)}")
        return value[first:last]

    return cut


def char_at(run: Run, text: str, index: int | float) -> str:
    at = whole("charAt", index)
    if not 0 <= at <= len(text):
        raise EvaluationError(f"charAt {at} is outside of 0 to {len(text)}")
    return text[at : at + 1]


def replace(run: Run, text: str, old: str, new: str) -> str:
    grown = max(0, len(new) - len(old)) * _count(run, text, old)
    run.budget.consume((len(text) + grown) // CHARACTERS_PER_STEP)
    return text.replace(old, new)


def split(run: Run, text: str, separator: str) -> list[str]:
    _count(run, text, separator)
    return text.split(separator) if separator else list(text)


def join(run: Run, items: list[Any], separator: str = "") -> str:
    for item in items:
        if not isinstance(item, str):
            raise EvaluationError(
                f"join requires a list of texts, not of {kind_of(item)}; convert it with map(x, string(x))"
            )
    total = sum(len(item) for item in items) + len(separator) * len(items)
    run.budget.consume(total // CHARACTERS_PER_STEP)
    return separator.join(items)


def change_ascii(change: Callable[[bytes], bytes]) -> Callable[[Run, str], str]:
    """Return a function that changes the ASCII letters of a text: methods of bytes change no others."""

    def changed(run: Run, text: str) -> str:
        run.budget.consume(2 * len(text) // CHARACTERS_PER_STEP)
        return change(text.encode(errors="surrogatepass")).decode(errors="surrogatepass")

    return changed


def change_case(change: Callable[[str], str]) -> Callable[[Run, str], str]:
    """Return a function that changes the letters of all languages: a letter can become three."""

    def changed(run: Run, text: str) -> str:
        run.budget.consume(len(text) // (CHARACTERS_PER_STEP if text.isascii() else CHARACTERS_OF_CASE))
        return change(text)

    return changed
