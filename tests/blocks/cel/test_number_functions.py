"""Numbers: rounding, reading and writing."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from tests.blocks.cel.evaluation import failure, value

VALUES: dict[str, JsonValue] = {
    "round(2.5)": 3,
    "round(-2.5)": -3,
    "round(2.675, 2)": 2.68,
    "round(7, 2)": 7,
    "round(1e300)": 1e300,
    "floor(-2.1)": -3,
    "ceil(2.1)": 3,
    "floor(1e300)": 1e300,
    "abs(-2.5)": 2.5,
    "number('7')": 7,
    "number(' -1.50\\n')": -1.5,
    "number('1e3')": 1000.0,
    "number(3.5)": 3.5,
    "format_number(1234567.895, 2)": "1234567.90",
    "format_number(1234567.895, 2, ',')": "1,234,567.90",
    "format_number(1234567.895, 2, '.', ',')": "1.234.567,90",
    "format_number(5, 0)": "5",
    "format_number(-0.001, 2)": "0.00",
    "format_number(-1234, 1, ' ')": "-1 234.0",
    "format_number(2.675, 2)": "2.68",
    "size(format_number(1e308, 15))": 325,
}


@pytest.mark.parametrize(("text", "expected"), VALUES.items(), ids=VALUES)
def test_values(text: str, expected: JsonValue) -> None:
    found = value(text)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("number('1,5')", "number cannot convert '1,5'"),
        ("number('')", "number cannot convert ''"),
        ("number('99999999999999999999')", "an integer exceeds 64 bits"),
        ("number('1e999')", "a number is too large"),
        ("round(1.5, 16)", "round requires 0 to 15 digits"),
        ("format_number(1, 1000000000)", "format_number requires 0 to 15 digits"),
        ("format_number(1, 0.5)", "format_number requires an integer"),
        ("format_number(1, 2, ', ')", "separators of one character"),
        ("format_number(1, 2, ',', '')", "separators of one character"),
        ("floor('1')", "does not accept a text"),
    ],
)
def test_errors(text: str, reason: str) -> None:
    assert reason in failure(text)
