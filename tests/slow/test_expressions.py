"""Many random expressions."""

from __future__ import annotations

from tests.blocks.random_expressions import Generator, outcome

EXPRESSIONS = 100_000


def test_random_expressions_have_a_value_or_an_error() -> None:
    generator = Generator(2026)
    outcomes = {outcome(*generator.expression()) for _ in range(EXPRESSIONS)}
    assert outcomes == {"value", "invalid", "expression_failed", "too costly"}
