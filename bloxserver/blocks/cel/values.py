"""The values of the language and its operators: JSON values, timestamps, durations and types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import fmod, isfinite
from operator import ge, gt, le, lt
from types import NoneType
from typing import Any
from uuid import UUID, uuid5

MIN_INT = -(2**63)
MAX_INT = 2**63 - 1
NANOSECONDS_PER_STEP = 380
"""The most time that a step takes on the machine that docs/performance.md describes, with both cores in use.
`python -m benchmarks expressions` measures it for each function and operator.
"""
MAX_STEPS = 13_000
"""The budget of an attempt or a routing decision on the event loop: less than 5 ms."""
MAX_ISOLATED_STEPS = 1_500_000
"""The budget in a process of its own: less than 0.6 seconds."""
CHARACTERS_PER_STEP = 64
COMPARISONS_PER_STEP = 256
"""The characters that a search compares in a step, if its time is a product of two lengths."""
PAIR_STEPS = 4
"""The steps to compare two members of lists or objects."""
TIME_STEPS = 10
"""The steps for arithmetic with timestamps and durations."""
REMAINDER_STEPS = 20
"""The steps for a remainder or a rounded quotient, which take longer if the numbers differ much in size."""
ERROR_STEPS = 12
"""The steps for an error that does not end the evaluation."""


UUIDS = UUID("5b0d3c5e-6a0f-4f0e-9d53-0b7f5a6c1e42")
"""The namespace of the values of `uuid`."""


class EvaluationError(Exception):
    """The evaluation failed. The message is shown to the author of the expression."""


class MissingValue(EvaluationError):
    """A member of an object or an item of a list does not exist."""


class CostLimitExceeded(Exception):
    """The evaluation exceeded its budget."""


class Invocation:
    """What expressions can know about the handling of a message: the same in each attempt, in every process.

    `moment` is the value of `now()`. The values of `uuid()` follow from `key` and from the calls so far, so an attempt
    begins with a new invocation.
    """

    def __init__(self, moment: datetime, key: str) -> None:
        self.moment = moment
        self.key = key
        self._uuids = 0

    def next_uuid(self) -> str:
        self._uuids += 1
        return str(uuid5(UUIDS, f"{self.key}#{self._uuids}"))


class Budget:
    """The number of steps that an evaluation can still take. The time is at most proportional to the steps.

    `isolated`: the evaluation runs in a process whose time and memory the operating system limits. `invocation`: what
    the steps are for; without it, `now` and `uuid` fail.
    """

    def __init__(self, steps: int, *, isolated: bool = False, invocation: Invocation | None = None) -> None:
        self.left = steps
        self.isolated = isolated
        self.invocation = invocation

    def consume(self, steps: int) -> None:
        """Subtract steps. Call this before the work and before memory is used. Raises `CostLimitExceeded`."""
        self.left -= steps
        if self.left < 0:
            raise CostLimitExceeded


@dataclass(slots=True)
class Run:
    """The state of one evaluation. With `real`, division does not truncate, and an integer that exceeds 64 bits becomes
    a float instead of failing.
    """

    names: dict[str, Any]
    budget: Budget
    real: bool = False


@dataclass(frozen=True)
class TypeName:
    """The value of `type(x)`."""

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
    """Return the kind of a value for messages. All numbers have the same kind."""
    kind = KINDS.get(type(value))
    return kind or next(kind for base, kind in KINDS.items() if isinstance(value, base))


def equal(left: Any, right: Any, run: Run) -> bool:
    """Compare two values. Values of different kinds are not equal; numbers are compared by value, lists and objects by
    content.
    """
    if kind_of(left) != kind_of(right):
        return False
    if isinstance(left, str):
        run.budget.consume(len(left) // CHARACTERS_PER_STEP)
    return _equal_content(left, right, run) if isinstance(left, list | dict) else bool(left == right)


def _equal_content(left: Any, right: Any, run: Run) -> bool:
    pairs = [(left, right)]
    while pairs:
        one, other = pairs.pop()
        if kind_of(one) != kind_of(other):
            return False
        if isinstance(one, list):
            if len(one) != len(other):
                return False
            run.budget.consume(1 + PAIR_STEPS * len(one))
            pairs.extend(zip(one, other, strict=True))
        elif isinstance(one, dict):
            if len(one) != len(other):
                return False
            run.budget.consume(1 + PAIR_STEPS * len(one))
            run.budget.consume(sum(map(len, one)) // CHARACTERS_PER_STEP)
            if one.keys() != other.keys():
                return False
            pairs.extend((value, other[key]) for key, value in one.items())
        else:
            if isinstance(one, str):
                run.budget.consume(len(one) // CHARACTERS_PER_STEP)
            if one != other:
                return False
    return True


def not_equal(left: Any, right: Any, run: Run) -> bool:
    return not equal(left, right, run)


def contains(left: Any, right: Any, run: Run) -> bool:
    """Return whether a list contains the value, or an object the key."""
    if isinstance(right, dict):
        return isinstance(left, str) and has_key(right, left, run)
    if isinstance(right, list):
        return contains_item(right, left, run)
    if isinstance(right, str):
        raise EvaluationError("in needs a list or an object; for a text write text.contains(part)")
    raise EvaluationError(f"in needs a list or an object, not {kind_of(right)}")


def contains_item(items: list[Any], wanted: Any, run: Run) -> bool:
    run.budget.consume(PAIR_STEPS * len(items))
    return any(equal(wanted, item, run) for item in items)


def has_key(members: dict[str, Any], key: str, run: Run) -> bool:
    """Return whether an object has a member. The time depends on the key: it is hashed and compared."""
    run.budget.consume(len(key) // CHARACTERS_PER_STEP)
    return key in members


def ordering(operator: str, compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any, Run], bool]:
    def ordered(left: Any, right: Any, run: Run) -> bool:
        kind = kind_of(left)
        if kind != kind_of(right) or kind in ("null", "a list", "an object", "a type"):
            raise _mismatch(operator, left, right)
        if isinstance(left, str):
            run.budget.consume(len(left) // CHARACTERS_PER_STEP)
        return compare(left, right)

    return ordered


def add(left: Any, right: Any, run: Run) -> Any:
    if _are_numbers(left, right):
        return bounded(left + right, run)
    if isinstance(left, str) and isinstance(right, str):
        run.budget.consume((len(left) + len(right)) // CHARACTERS_PER_STEP)
        return left + right
    if isinstance(left, list) and isinstance(right, list):
        run.budget.consume(len(left) + len(right))
        return left + right
    times = (isinstance(left, datetime), isinstance(right, datetime))
    if _are_times(left, right) and times != (True, True):
        run.budget.consume(TIME_STEPS)
        return in_range(lambda: left + right)
    if isinstance(left, str) or isinstance(right, str):
        other = right if isinstance(left, str) else left
        raise EvaluationError(f"+ cannot join a text and {kind_of(other)}; convert the value with string(…)")
    raise _mismatch("+", left, right)


def subtract(left: Any, right: Any, run: Run) -> Any:
    if _are_numbers(left, right):
        return bounded(left - right, run)
    if _are_times(left, right) and not (isinstance(left, timedelta) and isinstance(right, datetime)):
        run.budget.consume(TIME_STEPS)
        return in_range(lambda: left - right)
    raise _mismatch("-", left, right)


def multiply(left: Any, right: Any, run: Run) -> Any:
    if _are_numbers(left, right):
        return bounded(left * right, run)
    raise _mismatch("*", left, right)


def divide(left: Any, right: Any, run: Run) -> Any:
    """Divide. The quotient of integers is an integer, truncated towards zero, unless the run is `real`."""
    if not _are_numbers(left, right):
        raise _mismatch("/", left, right)
    if right == 0:
        raise EvaluationError("division by zero")
    if isinstance(left, float) or isinstance(right, float):
        return bounded(float(left) / float(right), run)
    quotient = abs(left) // abs(right)
    if run.real and quotient * abs(right) != abs(left):
        return bounded(left / right, run)
    return bounded(quotient if (left < 0) == (right < 0) else -quotient, run)


def divide_down(left: Any, right: Any, run: Run) -> Any:
    """Divide and round down."""
    if not _are_numbers(left, right):
        raise _mismatch("//", left, right)
    if right == 0:
        raise EvaluationError("division by zero")
    run.budget.consume(REMAINDER_STEPS)
    return bounded(left // right, run)


def remainder(left: Any, right: Any, run: Run) -> Any:
    """Return the remainder with the sign of `left`, as in CEL and C."""
    if not _are_numbers(left, right):
        raise _mismatch("%", left, right)
    if right == 0:
        raise EvaluationError("division by zero")
    if isinstance(left, float) or isinstance(right, float):
        run.budget.consume(REMAINDER_STEPS)
        return bounded(fmod(left, right), run)
    rest = abs(left) % abs(right)
    return -rest if left < 0 else rest


def power(left: Any, right: Any, run: Run) -> Any:
    if not _are_numbers(left, right):
        raise _mismatch("to the power of", left, right)
    exact = isinstance(left, int) and isinstance(right, int) and 0 <= right * left.bit_length() <= 64
    try:
        result = left**right if exact else float(left) ** float(right)
    except (OverflowError, ZeroDivisionError):
        raise EvaluationError(f"{left} to the power of {right} is undefined or out of range") from None
    if isinstance(result, complex):
        raise EvaluationError(f"{left} to the power of {right} is not a real number")
    return bounded(result, run)


def negative(value: Any, run: Run) -> Any:
    if isinstance(value, timedelta):
        return in_range(lambda: -value)
    if not is_number(value):
        raise EvaluationError(f"- needs a number, not {kind_of(value)}")
    return bounded(-value, run)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def bounded(number: int | float, run: Run) -> int | float:
    """Return the number if it is in range. Raises `EvaluationError`."""
    if isinstance(number, int):
        if MIN_INT <= number <= MAX_INT:
            return number
        if not run.real:
            raise EvaluationError("an integer exceeds 64 bits")
        # An integer with hundreds of digits is not a float.
        number = in_range(lambda: float(number), "a number is too large")
    if not isfinite(number):
        raise EvaluationError("a number is too large")
    return number


def in_range(calculate: Callable[[], Any], otherwise: str = "a time is out of range") -> Any:
    """Return the result. Raises `EvaluationError` if it is out of range, as a time after the year 9999 is."""
    try:
        return calculate()
    except (OverflowError, ValueError):
        raise EvaluationError(otherwise) from None


def to_json_value(value: Any) -> Any:
    """Convert a timestamp to ISO 8601 text, a duration to seconds, or a type to its name."""
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
        # The message may contain a number with thousands of digits, and arithmetic with it is slow.
        if isinstance(number, int) and not MIN_INT <= number <= MAX_INT:
            raise EvaluationError("an integer exceeds 64 bits")
    return True


def _are_times(left: Any, right: Any) -> bool:
    return isinstance(left, datetime | timedelta) and isinstance(right, datetime | timedelta)


def _mismatch(operator: str, left: Any, right: Any) -> EvaluationError:
    return EvaluationError(f"{operator} cannot be used with {kind_of(left)} and {kind_of(right)}")
