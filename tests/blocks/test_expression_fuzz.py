"""Random expressions end with a value or an error of the expression, never with an unexpected exception."""

from __future__ import annotations

import pytest

from tests.blocks.random_expressions import Generator, outcome

EXPRESSIONS = 500


@pytest.mark.parametrize("seed", range(4))
def test_random_expressions_have_a_value_or_an_error(seed: int) -> None:
    generator = Generator(seed)
    outcomes = [outcome(*generator.expression()) for _ in range(EXPRESSIONS)]
    assert outcomes.count("value") > EXPRESSIONS / 10
    assert outcomes.count("expression_failed") > EXPRESSIONS / 10
