"""Large JSON values as text."""

from __future__ import annotations

import json

import pytest

from bloxserver.raw_json import (
    MAX_CHARACTERS,
    MAX_VALUES,
    RawJson,
    is_large,
    list_of,
    object_of,
    plain,
    text_of_value,
    value_of_text,
)


@pytest.mark.parametrize(
    ("text", "large"),
    [
        ('"' + "x" * (MAX_CHARACTERS - 2) + '"', False),
        ('"' + "x" * (MAX_CHARACTERS - 1) + '"', True),
        ("[" + "1," * (MAX_VALUES - 1) + "1]", False),
        ("[" + "1," * MAX_VALUES + "1]", True),
        ("[" * 2_001 + "]" * 2_001, False),
        ("[" * 4_001 + "]" * 4_001, True),
    ],
)
def test_text_is_large_by_its_length_or_its_values(text: str, large: bool) -> None:
    assert is_large(text) is large


def test_large_text_is_kept_as_text() -> None:
    large = json.dumps(["x"] * 10_000)
    assert value_of_text(large) == RawJson(large)
    assert value_of_text("[1, 2.5, null]") == [1, 2.5, None]
    assert text_of_value(RawJson(large)) is large
    assert plain(RawJson(large)) == ["x"] * 10_000


def test_values_around_a_large_one_are_written_as_text() -> None:
    large = RawJson(json.dumps([1] * 10_000))
    described = object_of({"a b": large, "ü": "text", "list": list_of([large, 1])})
    assert isinstance(described, RawJson)
    assert json.loads(described.text) == {"a b": [1] * 10_000, "ü": "text", "list": [[1] * 10_000, 1]}
    assert object_of({"a": 1}) == {"a": 1}
    assert list_of([1, "x"]) == [1, "x"]
