"""Letters of all languages, and removing duplicates."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from tests.blocks.cel.evaluation import value

VALUES: dict[str, JsonValue] = {
    "upper('straße é')": "STRASSE É",
    "'ÀB'.lower()": "àb",
    "'a,b'.split(',').join(';').replace(';', '-').trim()": "a-b",
    "unique([1, 1.0, '1', 2, [1], [1]])": [1, "1", 2, [1]],
}


@pytest.mark.parametrize(("text", "expected"), VALUES.items(), ids=VALUES)
def test_values(text: str, expected: JsonValue) -> None:
    assert value(text) == expected
