from __future__ import annotations

import pytest

from bloxserver.blocks.agent_guard import canonical


@pytest.mark.parametrize(
    "equal",
    [
        ('{"a": 1, "b": [true]}', '{"b":[true],"a":1.0}', {"b": [True], "a": 1}),
        (None, "", "{}", {}),
        ('"\\u00e9"', '"é"'),
        ("[" * 100_000, "[" * 100_000),
        ("not JSON", "not JSON"),
    ],
)
def test_equal_arguments_have_the_same_text(equal: tuple[str, ...]) -> None:
    assert len({canonical(each) for each in equal}) == 1


def test_different_arguments_have_different_texts() -> None:
    given = ['{"a": 1}', '{"a": "1"}', '{"a": 1.5}', '{"a": true}', '{"a": null}', "{}", '{"b": 1}', "[1, 2]", "[2, 1]"]
    assert len({canonical(each) for each in given}) == len(given)
