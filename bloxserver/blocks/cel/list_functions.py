"""The functions of lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bloxserver.blocks.cel.conversions import to_string
from bloxserver.blocks.cel.function import NUMBER, TEXT, TIME
from bloxserver.blocks.cel.values import (
    CHARACTERS_PER_STEP,
    EvaluationError,
    Run,
    add,
    contains_item,
    is_number,
    kind_of,
)

STEPS_OF_KEY = 6


def distinct(run: Run, items: list[Any]) -> list[Any]:
    run.budget.consume(2 * len(items))
    found: list[Any] = []
    scalars: set[tuple[str, Any]] = set()
    compounds: list[Any] = []
    for item in items:
        if isinstance(item, list | dict):
            if contains_item(compounds, item, run):
                continue
            compounds.append(item)
        else:
            if isinstance(item, str):
                run.budget.consume(len(item) // CHARACTERS_PER_STEP)
            key = (kind_of(item), item)
            if key in scalars:
                continue
            scalars.add(key)
        found.append(item)
    return found


def flatten(run: Run, items: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for item in items:
        inner = item if isinstance(item, list) else [item]
        run.budget.consume(len(inner))
        flat.extend(inner)
    return flat


def sort(run: Run, items: list[Any]) -> list[Any]:
    require_ordered("sort", items)
    consume_comparisons(run, items, rounds=len(items).bit_length())
    return sorted(items)


def require_ordered(name: str, items: Sequence[Any]) -> None:
    kinds = {kind_of(item) for item in items}
    if len(kinds) > 1 or not kinds <= {NUMBER, TEXT, TIME, "a duration", "a boolean"}:
        raise EvaluationError(f"{name} requires a list of numbers or of texts, not of {' and '.join(sorted(kinds))}")


def consume_comparisons(run: Run, items: Sequence[Any], rounds: int) -> None:
    """Consume the steps to compare each item `rounds` times."""
    characters = sum(map(len, items)) if items and isinstance(items[0], str) else 0
    run.budget.consume(rounds * (len(items) + characters // CHARACTERS_PER_STEP))


def extreme(name: str, choose: Callable[[Sequence[Any]], Any]) -> Callable[..., Any]:
    """Return a function for the minimum or maximum of a list, or of several arguments."""

    def extreme(run: Run, *arguments: Any) -> Any:
        items = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else arguments
        require_ordered(name, items)
        if not items:
            raise EvaluationError(f"{name} requires at least one value")
        consume_comparisons(run, items, rounds=2)
        return choose(items)

    return extreme


def total(run: Run, items: list[Any]) -> Any:
    run.budget.consume(2 * len(items))
    result: Any = 0
    for index, item in enumerate(items):
        if index == 0 and isinstance(item, str | list):
            raise EvaluationError("sum requires a list of numbers")
        result = add(result, item, run) if index or is_number(item) else item
    return result


def sort_by(run: Run, items: list[Any], keys: list[Any]) -> list[Any]:
    require_ordered("sort_by", keys)
    consume_comparisons(run, keys, rounds=1 + len(keys).bit_length())
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [items[index] for index in order]


def group_by(run: Run, items: list[Any], keys: list[Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for item, key in zip(items, keys, strict=True):
        groups.setdefault(_text_of_key("group_by", run, key), []).append(item)
    return groups


def unique_by(run: Run, items: list[Any], keys: list[Any]) -> list[Any]:
    found: dict[tuple[str, str], Any] = {}
    for item, key in zip(items, keys, strict=True):
        found.setdefault((kind_of(key), _text_of_key("unique_by", run, key)), item)
    return [*found.values()]


def _text_of_key(name: str, run: Run, key: Any) -> str:
    """Return the name of a group. Raises `EvaluationError`."""
    if not isinstance(key, str | int | float):
        raise EvaluationError(f"{name} requires a text, a number or a boolean as its key, not {kind_of(key)}")
    run.budget.consume(STEPS_OF_KEY + (len(key) // CHARACTERS_PER_STEP if isinstance(key, str) else 0))
    return key if isinstance(key, str) else to_string(run, key)


KEYED: dict[str, Callable[[Run, list[Any], list[Any]], Any]] = {
    "sort_by": sort_by,
    "unique_by": unique_by,
    "group_by": group_by,
}
"""The functions of macros with a key: they receive the items and the keys."""
