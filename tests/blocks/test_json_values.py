"""Storable JSON values."""

from __future__ import annotations

from typing import Any

import pytest

from bloxserver.blocks.json_values import storable, value_at

REFUSED: dict[str, Any] = {
    "a.1.b contains a NUL character": {"a": [1, {"b": "\0"}]},
    "it contains a NUL character": {"a\0": 1},
    "a has a key that is not a string": {"a": {1: 2}},
    "it contains half of a surrogate pair": "\ud800",
    "0 is not a finite number": [float("nan")],
    "it is an integer of more than 64 bits": 2**64,
    "0 is not a JSON value": [{1, 2}],
    "it is larger than 1048576 bytes": ["x" * 1000] * 1100,
}


def test_storable_values_are_copied() -> None:
    value = {"a": [1, -2.5, None, True, "é"], "b": {}, "c": 2**64 - 1}
    copied = storable(value)
    assert copied == value
    assert copied is not value


@pytest.mark.parametrize(("reason", "value"), REFUSED.items(), ids=REFUSED)
def test_unstorable_values_are_rejected_with_their_path(reason: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        storable(value)
    assert reason in str(caught.value)


def test_too_deeply_nested_values_are_rejected() -> None:
    value: list[Any] = []
    for _ in range(63):
        value = [value]
    assert storable(value) == value
    with pytest.raises(ValueError, match="more than 64"):
        storable([value])
    with pytest.raises(ValueError, match="more than 2 levels"):
        storable([[[]]], max_depth=2)


def test_other_types_are_converted() -> None:
    assert storable([{1}], convert=len) == [1]


@pytest.mark.parametrize(
    ("path", "expected"),
    [([], {"a": [{"0": 1}]}), (["a", "0", "0"], 1), (["a"], [{"0": 1}])],
)
def test_value_at_returns_the_value_of_a_path(path: list[str], expected: Any) -> None:
    assert value_at(path, {"a": [{"0": 1}]}) == expected


@pytest.mark.parametrize("path", [["b"], ["a", "1"], ["a", "-1"], ["a", "0", "0", "x"], ["a", "9" * 5000]], ids=str)
def test_value_at_missing_path_raises(path: list[str]) -> None:
    with pytest.raises(LookupError):
        value_at(path, {"a": [{"0": 1}]})
