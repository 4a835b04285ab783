"""The functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal

from bloxserver.blocks.cel.conversions import MAX_CHARACTERS, parsed_number
from bloxserver.blocks.cel.values import MAX_INT, MIN_INT, EvaluationError, Run, bounded

MAX_DIGITS = 15
_EXACT = Context(prec=400)
"""For all digits of the largest float and MAX_DIGITS more."""


def whole(name: str, number: int | float) -> int:
    if isinstance(number, float) and not number.is_integer():
        raise EvaluationError(f"{name} requires an integer")
    return int(number)


def round_half_up(run: Run, number: int | float, digits: int | float = 0) -> int | float:
    """Round a number; halves are rounded away from zero."""
    places = _digits("round", digits)
    if isinstance(number, int) or abs(number) >= 2**53:
        return number
    # The decimal text is rounded: 2.675 is half way, but the float is slightly less.
    return float(Decimal(repr(number)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP))


def sign(run: Run, number: int | float) -> int | float:
    return type(number)((number > 0) - (number < 0))


def sqrt(run: Run, number: int | float) -> float:
    if number < 0:
        raise EvaluationError("sqrt requires a number that is not negative")
    return math.sqrt(number)


def rounding(to_whole: Callable[[int | float], int]) -> Callable[[Run, int | float], int | float]:
    """Return a rounding function. As in CEL, the type of the number does not change."""
    return lambda run, number: number if isinstance(number, int) else float(to_whole(number))


def to_integer(to_whole: Callable[[int | float], int]) -> Callable[[Run, int | float], int | float]:
    """Return a rounding function whose result is an integer, unless it exceeds 64 bits."""

    def rounded(run: Run, number: int | float) -> int | float:
        found = to_whole(number)
        return found if MIN_INT <= found <= MAX_INT else number

    return rounded


def round_number(run: Run, number: int | float, digits: int | float = 0) -> int | float:
    """Like `round_half_up`; without digits, the result is an integer."""
    rounded = round_half_up(run, number, digits)
    return to_integer(int)(run, rounded) if digits == 0 else rounded


def to_number(run: Run, value: str | int | float) -> int | float:
    """Convert text to an integer, or to a float if it has a fraction or an exponent."""
    if not isinstance(value, str):
        return bounded(value, run)
    # Spaces are common in tables. Texts that are too long for a number are not copied.
    text = value if len(value) > MAX_CHARACTERS else value.strip()
    return bounded(parsed_number("number", text), run)


def format_number(run: Run, number: int | float, digits: int | float, group: str = "", point: str = ".") -> str:
    """Write a number with this number of digits after the point, and with `group` between thousands."""
    places = _digits("format_number", digits)
    if len(group) > 1 or len(point) != 1:
        raise EvaluationError("format_number requires separators of one character")
    exact = Decimal(number if isinstance(number, int) else repr(number))
    rounded = exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP, _EXACT)
    written = f"{abs(rounded) if rounded.is_zero() else rounded:,f}"
    return written.translate({ord(","): group, ord("."): point})


def _digits(name: str, digits: int | float) -> int:
    places = whole(name, digits)
    if not 0 <= places <= MAX_DIGITS:
        raise EvaluationError(f"{name} requires 0 to {MAX_DIGITS} digits")
    return places
