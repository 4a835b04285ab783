"""The functions that tasks can call."""

from __future__ import annotations

import pytest

from bloxserver.isolation.functions import FUNCTIONS, find_function


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_exists(name: str) -> None:
    assert callable(find_function(name))


def test_unknown_function_is_an_error() -> None:
    with pytest.raises(KeyError):
        find_function("missing")
