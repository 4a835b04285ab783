"""What operators do with values: JSON's, timestamps, durations and types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import fmod, isfinite
from operator import ge, gt, le, lt
from types import NoneType
from typing import Any

MIN_INT = -(2**63)
MAX_INT = 2**63 - 1
CHARACTERS_PER_STEP = 64


class Failure(Exception):
    """The expression has no value; the message says why, to who wrote it."""


class CostLimitExceeded(Exception):
    """The evaluation has used up its steps."""


class Budget:
    """How many steps an evaluation may still take; a step is well below a microsecond."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def spend(self, steps: int) -> None:
        """Raises `CostLimitExceeded`. To be called before memory is used."""
        self._left -= steps
        if self._left < 0:
            raise CostLimitExceeded


@dataclass(slots=True)
class Run:
    """One evaluation. With `real` numbers are those of a calculator: division does not round, and a whole number
    that is too large loses digits instead of failing.
    """

    names: dict[str, Any]
    budget: Budget
    real: bool = False


@dataclass(frozen=True)
class TypeName:
    """What `type(x)` gives."""

    name: str


KINDS: dict[type, str] = {
    NoneType: "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
    datetime: "a timestamp",
    timedelta: "a duration",
    TypeName: "a type",
}


def kind_of(value: Any) -> str:
    """As a person calls it; the same for all numbers."""
    kind = KINDS.get(type(value))
    return kind or next(kind for base, kind in KINDS.items() if isinstance(value, base))


def equal(left: Any, right: Any, run: Run) -> bool:
    """Values of different kinds are unlike, numbers compare by their value, lists and objects by their contents."""
    pairs = [(left, right)]
    while pairs:
        one, other = pairs.pop()
        run.budget.spend(1)
        if kind_of(one) != kind_of(other):
            return False
        if isinstance(one, list):
            if len(one) != len(other):
                return False
            run.budget.spend(len(one))
            pairs.extend(zip(one, other, strict=True))
        elif isinstance(one, dict):
            run.budget.spend(min(len(one), len(other)))
            if one.keys() != other.keys():
                return False
            pairs.extend((value, other[key]) for key, value in one.items())
        else:
            if isinstance(one, str):
                run.budget.spend(len(one) // CHARACTERS_PER_STEP)
            if one != other:
                return False
    return True


def not_equal(left: Any, right: Any, run: Run) -> bool:
    return not equal(left, right, run)


def contains(left: Any, right: Any, run: Run) -> bool:
    """Whether a list has the value, or an object the key."""
    if isinstance(right, dict):
        return isinstance(left, str) and left in right
    if isinstance(right, list):
        return any(equal(left, item, run) for item in right)
    if isinstance(right, str):
        raise Failure("in looks into a list or an object; for a text write text.contains(part)")
    raise Failure(f"in looks into a list or an object, not into {kind_of(right)}")


def ordering(operator: str, compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any, Run], bool]:
    def ordered(left: Any, right: Any, run: Run) -> bool:
        kind = kind_of(left)
        if kind != kind_of(right) or kind in ("null", "a list", "an object", "a type"):
            raise _mismatch(operator, left, right)
        if isinstance(left, str):
            run.budget.spend(len(left) // CHARACTERS_PER_STEP)
        return compare(left, right)

    return ordered


def add(left: Any, right: Any, run: Run) -> Any:
    if _are_numbers(left, right):
        return fitting(left + right, run)
    if isinstance(left, str) and isinstance(right, str):
        run.budget.spend((len(left) + len(right)) // CHARACTERS_PER_STEP)
        return left + right
    if isinstance(left, list) and isinstance(right, list):
        run.budget.spend(len(left) + len(right))
        return left + right
    times = (isinstance(left, datetime), isinstance(right, datetime))
    if _are_times(left, right) and times != (True, True):
        return in_range(lambda: left + right)
    if isinstance(left, str) or isinstance(right, str):
        other = right if isinstance(left, str) else left
        raise Failure(f"+ cannot join a text and {kind_of(other)}: write string(…) around what is no text")
    raise _mismatch("+", left, right)


def subtract(left: Any, right: Any, run: Run) -> Any:
    if _are_numbers(left, right):
        return fitting(left - right, run)
    if _are_times(left, right) and not (isinstance(left, timedelta) and isinstance(right, datetime)):
        return in_range(lambda: left - right)
    raise _mismatch("-", left, right)


def multiply(left: Any, right: Any, run: Run) -> Any:
    if _are_numbers(left, right):
        return fitting(left * right, run)
    raise _mismatch("*", left, right)


def divide(left: Any, right: Any, run: Run) -> Any:
    """Whole numbers give a whole number, cut off towards zero, unless the run is `real`."""
    if not _are_numbers(left, right):
        raise _mismatch("/", left, right)
    if right == 0:
        raise Failure("division by zero")
    if isinstance(left, float) or isinstance(right, float):
        return fitting(float(left) / float(right), run)
    quotient = abs(left) // abs(right)
    if run.real and quotient * abs(right) != abs(left):
        return fitting(left / right, run)
    return fitting(quotient if (left < 0) == (right < 0) else -quotient, run)


def divide_down(left: Any, right: Any, run: Run) -> Any:
    """The next whole number below."""
    if not _are_numbers(left, right):
        raise _mismatch("//", left, right)
    if right == 0:
        raise Failure("division by zero")
    return fitting(left // right, run)


def remainder(left: Any, right: Any, run: Run) -> Any:
    """Of the sign of `left`, as in CEL and C."""
    if not _are_numbers(left, right):
        raise _mismatch("%", left, right)
    if right == 0:
        raise Failure("division by zero")
    if isinstance(left, float) or isinstance(right, float):
        return fitting(fmod(left, right), run)
    rest = abs(left) % abs(right)
    return -rest if left < 0 else rest


def power(left: Any, right: Any, run: Run) -> Any:
    if not _are_numbers(left, right):
        raise _mismatch("to the power of", left, right)
    exact = isinstance(left, int) and isinstance(right, int) and 0 <= right * left.bit_length() <= 64
    try:
        result = left**right if exact else float(left) ** float(right)
    except (OverflowError, ZeroDivisionError):
        raise Failure(f"{left} to the power of {right} has no value that can be written down") from None
    if isinstance(result, complex):
        raise Failure(f"{left} to the power of {right} is no real number")
    return fitting(result, run)


def negative(value: Any, run: Run) -> Any:
    if isinstance(value, timedelta):
        return in_range(lambda: -value)
    if not is_number(value):
        raise Failure(f"- needs a number, not {kind_of(value)}")
    return fitting(-value, run)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def fitting(number: int | float, run: Run) -> int | float:
    """The number, unless it is too large."""
    if isinstance(number, int):
        if MIN_INT <= number <= MAX_INT:
            return number
        if not run.real:
            raise Failure("a whole number does not fit into 64 bits")
        number = float(number)
    if not isfinite(number):
        raise Failure("a number is too large")
    return number


def in_range(calculate: Callable[[], Any]) -> Any:
    """The time that is calculated. Raises `Failure` where it lies before the year 1 or after 9999."""
    try:
        return calculate()
    except (OverflowError, ValueError):
        raise Failure("a time is out of range") from None


def plain(value: Any) -> Any:
    """What JSON has for a value that is not JSON: ISO 8601 text, seconds, the name of a type."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, TypeName):
        return value.name
    raise ValueError("a value cannot be written as JSON")


ORDERINGS = {
    operator: ordering(operator, compare) for operator, compare in [("<", lt), ("<=", le), (">", gt), (">=", ge)]
}
OPERATORS: dict[str, Callable[[Any, Any, Run], Any]] = {
    "==": equal,
    "!=": not_equal,
    **ORDERINGS,
    "in": contains,
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": divide,
    "%": remainder,
    "//": divide_down,
    "**": power,
    "^": power,
}


def _are_numbers(left: Any, right: Any) -> bool:
    if not (is_number(left) and is_number(right)):
        return False
    for number in (left, right):
        # The message may hold a number of a thousand digits, with which arithmetic is slow.
        if isinstance(number, int) and not MIN_INT <= number <= MAX_INT:
            raise Failure("a whole number does not fit into 64 bits")
    return True


def _are_times(left: Any, right: Any) -> bool:
    return isinstance(left, datetime | timedelta) and isinstance(right, datetime | timedelta)


def _mismatch(operator: str, left: Any, right: Any) -> Failure:
    return Failure(f"{operator} cannot be used with {kind_of(left)} and {kind_of(right)}")
