"""The functions of the language: those of CEL that JSON needs, and the common extensions.

Each function can be called as `f(x, y)` and as `x.f(y)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from bloxserver.blocks.cel import conversions, patterns
from bloxserver.blocks.cel.values import (
    CHARACTERS_PER_STEP,
    COMPARISONS_PER_STEP,
    MAX_INT,
    MIN_INT,
    EvaluationError,
    Run,
    add,
    bounded,
    contains_item,
    is_number,
    kind_of,
)

TEXT = "a text"
LIST = "a list"
NUMBER = "a number"
TIME = "a timestamp"
ANYTHING = "anything"
FAST, MEDIUM, SLOW = 3, 6, 15
"""The steps of a call."""
_NUMBER_ONLY = frozenset({NUMBER})
_QUADRATIC_TEXT = 2_500
_QUADRATIC_PART = 100
_QUADRATIC_TEXT_OF_LONG_PART = 30_000


@dataclass(frozen=True)
class Function:
    """A function of the language. `call` receives the run, and arguments of the kinds in `takes`."""

    call: Callable[..., Any]
    takes: tuple[str, ...]
    """The kind of each argument: kinds separated by |, or ANYTHING."""
    optional: int = 0
    """The number of optional arguments at the end."""
    repeats: bool = False
    """Whether the last argument can be repeated."""
    steps: int = FAST
    """The steps of a call, in addition to those for the sizes of its arguments."""
    accepted: tuple[frozenset[str] | None, ...] = field(init=False, repr=False)
    """The kinds in `takes` as sets; null: anything."""

    def __post_init__(self) -> None:
        accepted = tuple(None if kinds == ANYTHING else frozenset(kinds.split("|")) for kinds in self.takes)
        object.__setattr__(self, "accepted", accepted)

    def accepts(self, count: int) -> bool:
        maximum = math.inf if self.repeats else len(self.takes)
        return len(self.takes) - self.optional <= count <= maximum

    def signature(self, name: str) -> str:
        arguments = [kind.replace("|", " or ") for kind in self.takes]
        required = len(arguments) - self.optional
        arguments[required:] = [f"{argument}, optional" for argument in arguments[required:]]
        return f"{name}({'; '.join(arguments)}{'; …' if self.repeats else ''})"

    def apply(self, name: str, arguments: Sequence[Any], run: Run) -> Any:
        """Check the arguments and call the function. Raises `EvaluationError` and `CostLimitExceeded`."""
        run.budget.consume(self.steps)
        for index, argument in enumerate(arguments):
            accepted = self.accepted[index if index < len(self.accepted) else -1]
            if accepted is not None and kind_of(argument) not in accepted:
                raise EvaluationError(f"{self.signature(name)} does not accept {kind_of(argument)}")
            if isinstance(argument, str):
                run.budget.consume(len(argument) // CHARACTERS_PER_STEP)
            elif isinstance(argument, list):
                run.budget.consume(len(argument))
            elif accepted == _NUMBER_ONLY:
                _require_in_range(argument)
        return self.call(run, *arguments)


def _require_in_range(number: int | float) -> None:
    """A message is not checked when it is evaluated: it can contain numbers that are too large."""
    if isinstance(number, float):
        if not math.isfinite(number):
            raise EvaluationError("a number is too large")
    elif not MIN_INT <= number <= MAX_INT:
        raise EvaluationError("an integer exceeds 64 bits")


def _contains(run: Run, container: Any, part: Any) -> bool:
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


def _index_of(run: Run, text: str, part: str) -> int:
    _consume_search(run, text, part)
    return text.find(part)


def _last_index_of(run: Run, text: str, part: str) -> int:
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


def _whole(name: str, number: int | float) -> int:
    if isinstance(number, float) and not number.is_integer():
        raise EvaluationError(f"{name} requires an integer")
    return int(number)


def _slice(name: str) -> Callable[..., Any]:
    """Return a function for the part of a text or list between two indexes."""

    def cut(run: Run, whole: Any, start: int | float, end: int | float | None = None) -> Any:
        first, last = _whole(name, start), len(whole) if end is None else _whole(name, end)
        if not 0 <= first <= last <= len(whole):
            raise EvaluationError(f"{name} from {first} to {last} is outside of 0 to {len(whole)}")
        return whole[first:last]

    return cut


def _char_at(run: Run, text: str, index: int | float) -> str:
    at = _whole("charAt", index)
    if not 0 <= at <= len(text):
        raise EvaluationError(f"charAt {at} is outside of 0 to {len(text)}")
    return text[at : at + 1]


def _replace(run: Run, text: str, old: str, new: str) -> str:
    grown = max(0, len(new) - len(old)) * _count(run, text, old)
    run.budget.consume((len(text) + grown) // CHARACTERS_PER_STEP)
    return text.replace(old, new)


def _split(run: Run, text: str, separator: str) -> list[str]:
    _count(run, text, separator)
    return text.split(separator) if separator else list(text)


def _join(run: Run, items: list[Any], separator: str = "") -> str:
    for item in items:
        if not isinstance(item, str):
            raise EvaluationError(
                f"join requires a list of texts, not of {kind_of(item)}; convert it with map(x, string(x))"
            )
    total = sum(len(item) for item in items) + len(separator) * len(items)
    run.budget.consume(total // CHARACTERS_PER_STEP)
    return separator.join(items)


def _ascii(change: Callable[[bytes], bytes]) -> Callable[[Run, str], str]:
    """Return a function that changes the ASCII letters of a text: methods of bytes change no others."""

    def changed(run: Run, text: str) -> str:
        run.budget.consume(2 * len(text) // CHARACTERS_PER_STEP)
        return change(text.encode(errors="surrogatepass")).decode(errors="surrogatepass")

    return changed


def _distinct(run: Run, items: list[Any]) -> list[Any]:
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


def _flatten(run: Run, items: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for item in items:
        inner = item if isinstance(item, list) else [item]
        run.budget.consume(len(inner))
        flat.extend(inner)
    return flat


def _sort(run: Run, items: list[Any]) -> list[Any]:
    _require_ordered("sort", items)
    _consume_comparisons(run, items, rounds=len(items).bit_length())
    return sorted(items)


def _require_ordered(name: str, items: Sequence[Any]) -> None:
    kinds = {kind_of(item) for item in items}
    if len(kinds) > 1 or not kinds <= {NUMBER, TEXT, TIME, "a duration", "a boolean"}:
        raise EvaluationError(f"{name} requires a list of numbers or of texts, not of {' and '.join(sorted(kinds))}")


def _consume_comparisons(run: Run, items: Sequence[Any], rounds: int) -> None:
    """Consume the steps to compare each item `rounds` times."""
    characters = sum(map(len, items)) if items and isinstance(items[0], str) else 0
    run.budget.consume(rounds * (len(items) + characters // CHARACTERS_PER_STEP))


def _extreme(name: str, choose: Callable[[Sequence[Any]], Any]) -> Callable[..., Any]:
    """Return a function for the minimum or maximum of a list, or of several arguments."""

    def extreme(run: Run, *arguments: Any) -> Any:
        items = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else arguments
        _require_ordered(name, items)
        if not items:
            raise EvaluationError(f"{name} requires at least one value")
        _consume_comparisons(run, items, rounds=2)
        return choose(items)

    return extreme


def _sum(run: Run, items: list[Any]) -> Any:
    run.budget.consume(2 * len(items))
    total: Any = 0
    for index, item in enumerate(items):
        if index == 0 and isinstance(item, str | list):
            raise EvaluationError("sum requires a list of numbers")
        total = add(total, item, run) if index or is_number(item) else item
    return total


def _round(run: Run, number: int | float, digits: int | float = 0) -> int | float:
    """Round a number; halves are rounded away from zero."""
    places = _whole("round", digits)
    if not 0 <= places <= 15:
        raise EvaluationError("round requires 0 to 15 digits")
    if isinstance(number, int) or abs(number) >= 2**53:
        return number
    # The decimal text is rounded: 2.675 is half way, but the float is slightly less.
    return float(Decimal(repr(number)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP))


def _sign(run: Run, number: int | float) -> int | float:
    return type(number)((number > 0) - (number < 0))


def _sqrt(run: Run, number: int | float) -> float:
    if number < 0:
        raise EvaluationError("sqrt requires a number that is not negative")
    return math.sqrt(number)


def _rounding(to_whole: Callable[[int | float], int]) -> Callable[[Run, int | float], int | float]:
    """Return a rounding function. As in CEL, the type of the number does not change."""
    return lambda run, number: number if isinstance(number, int) else float(to_whole(number))


_least = _extreme("min", min)
_greatest = _extreme("max", max)
_TO_NUMBER = "a text|a number|a timestamp"
_SPAN = "a timestamp|a duration"

FUNCTIONS: dict[str, Function] = {
    "size": Function(lambda run, value: len(value), ("a text|a list|an object",)),
    "int": Function(conversions.to_int, (_TO_NUMBER,), steps=MEDIUM),
    "double": Function(conversions.to_double, ("a text|a number",), steps=MEDIUM),
    "string": Function(conversions.to_string, ("a text|a number|a boolean|a timestamp|a duration|a type",), steps=SLOW),
    "bool": Function(conversions.to_bool, ("a text|a boolean",)),
    "type": Function(conversions.type_of, (ANYTHING,)),
    "dyn": Function(lambda run, value: value, (ANYTHING,)),
    "timestamp": Function(conversions.to_timestamp, (_TO_NUMBER,), steps=SLOW),
    "duration": Function(conversions.to_duration, ("a text|a number|a duration",), steps=SLOW),
    "getFullYear": Function(conversions.timestamp_part(lambda moment: moment.year), (TIME,), steps=SLOW),
    "getMonth": Function(conversions.timestamp_part(lambda moment: moment.month - 1), (TIME,), steps=SLOW),
    "getDate": Function(conversions.timestamp_part(lambda moment: moment.day), (TIME,), steps=SLOW),
    "getDayOfMonth": Function(conversions.timestamp_part(lambda moment: moment.day - 1), (TIME,), steps=SLOW),
    "getDayOfWeek": Function(conversions.timestamp_part(lambda moment: moment.isoweekday() % 7), (TIME,), steps=SLOW),
    "getDayOfYear": Function(
        conversions.timestamp_part(lambda moment: moment.timetuple().tm_yday - 1), (TIME,), steps=SLOW
    ),
    "getHours": Function(conversions.time_part(lambda moment: moment.hour, 3600), (_SPAN,), steps=SLOW),
    "getMinutes": Function(conversions.time_part(lambda moment: moment.minute, 60), (_SPAN,), steps=SLOW),
    "getSeconds": Function(conversions.time_part(lambda moment: moment.second, 1), (_SPAN,), steps=SLOW),
    "getMilliseconds": Function(
        conversions.timestamp_part(lambda moment: moment.microsecond // 1000), (TIME,), steps=SLOW
    ),
    "matches": Function(patterns.matches, (TEXT, TEXT)),
    "contains": Function(_contains, ("a text|a list", ANYTHING)),
    "startsWith": Function(lambda run, text, part: text.startswith(part), (TEXT, TEXT)),
    "endsWith": Function(lambda run, text, part: text.endswith(part), (TEXT, TEXT)),
    "charAt": Function(_char_at, (TEXT, NUMBER)),
    "indexOf": Function(_index_of, (TEXT, TEXT)),
    "lastIndexOf": Function(_last_index_of, (TEXT, TEXT)),
    "substring": Function(_slice("substring"), (TEXT, NUMBER, NUMBER), optional=1),
    "replace": Function(_replace, (TEXT, TEXT, TEXT)),
    "split": Function(_split, (TEXT, TEXT)),
    "join": Function(_join, (LIST, TEXT), optional=1),
    "lowerAscii": Function(_ascii(bytes.lower), (TEXT,)),
    "upperAscii": Function(_ascii(bytes.upper), (TEXT,)),
    "trim": Function(lambda run, text: text.strip(), (TEXT,)),
    "reverse": Function(lambda run, value: value[::-1], ("a text|a list",)),
    "slice": Function(_slice("slice"), (LIST, NUMBER, NUMBER)),
    "distinct": Function(_distinct, (LIST,)),
    "flatten": Function(_flatten, (LIST,)),
    "sort": Function(_sort, (LIST,)),
    "sum": Function(_sum, (LIST,)),
    "min": Function(_least, (ANYTHING,), repeats=True),
    "max": Function(_greatest, (ANYTHING,), repeats=True),
    "math.least": Function(_least, (ANYTHING,), repeats=True),
    "math.greatest": Function(_greatest, (ANYTHING,), repeats=True),
    "math.abs": Function(lambda run, number: bounded(abs(number), run), (NUMBER,)),
    "math.sign": Function(_sign, (NUMBER,)),
    "math.ceil": Function(_rounding(math.ceil), (NUMBER,)),
    "math.floor": Function(_rounding(math.floor), (NUMBER,)),
    "math.round": Function(_round, (NUMBER, NUMBER), optional=1, steps=SLOW),
    "math.trunc": Function(_rounding(math.trunc), (NUMBER,)),
    "math.sqrt": Function(_sqrt, (NUMBER,)),
}
