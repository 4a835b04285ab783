"""Regular expressions: syntax, and a cost that is known before the work."""

from __future__ import annotations

import pytest

from bloxserver.blocks.cel import patterns
from bloxserver.blocks.cel.patterns import CACHED, check_pattern, matches
from bloxserver.blocks.cel.values import MAX_STEPS, Budget, CostLimitExceeded, EvaluationError, Run

MATCHES = {
    ("d", "Ada"): True,
    ("^d", "Ada"): False,
    (r"^\d{3}-\d{4}$", "555-1234"): True,
    ("a.c", "a\nc"): False,
    ("(?s)a.c", "a\nc"): True,
    ("(?i)ADA", "ada"): True,
    ("(?P<first>A)", "A"): True,
    ("", ""): True,
    ("é", "Zoé"): True,
    ("😀+", "a😀😀"): True,
    (r"^[\pL\pN ]+$", "Zoé 7"): True,
    (r"\w", "é"): False,
    (r"\bo", "éo"): True,
    ("a$", "a\n"): False,
    ("x", "a\ud800x"): True,
}


def run(*, isolated: bool = False) -> Run:
    return Run({}, Budget(MAX_STEPS, isolated=isolated))


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(("case", "expected"), MATCHES.items(), ids=ascii)
def test_pattern_is_searched_anywhere_in_the_text(case: tuple[str, str], expected: bool, isolated: bool) -> None:
    pattern, text = case
    assert matches(run(isolated=isolated), text, pattern) is expected


INVALID = {
    "(": "missing ): (",
    "[a": "missing ]",
    "a**": "bad repetition operator",
    "(?:a|aa|aaa){5000}c": "invalid repetition size: {5000}",
    r"(\w{100}){100}": "invalid repetition size",
    r"\u00e9": "invalid escape sequence",
    "(a)\\1": "invalid escape sequence",
    "(?=a)": "invalid perl operator",
    "[a-z&&[^b]]]{2000}": "invalid repetition size",
    r"\p{Letter}": "invalid character class range",
}


@pytest.mark.parametrize(("pattern", "reason"), INVALID.items(), ids=ascii)
def test_invalid_pattern_has_a_reason(pattern: str, reason: str) -> None:
    with pytest.raises(EvaluationError, match="matches cannot use the regular expression: ") as caught:
        matches(run(), "text", pattern)
    assert reason in str(caught.value)
    with pytest.raises(ValueError, match="matches cannot use"):
        check_pattern(pattern, Budget(MAX_STEPS))


COSTLY = {
    "many instructions": ("(?:a|aa|aaa){1000}c", "a" * 65_536),
    "optional letters": ("(?:a?){300}a{300}b", "a" * 65_536),
    "classes": (r"\pL" * 600, "x"),
    "large classes": (r"[\pL\pN]{200}", "x"),
    "repetitions": ("a{1000}" * 250, "x"),
    "long": ("x" * 65_536, "x"),
}


@pytest.mark.parametrize(("pattern", "text"), COSTLY.values(), ids=COSTLY)
def test_costly_search_exceeds_the_budget_before_it_begins(pattern: str, text: str) -> None:
    state = run()
    with pytest.raises(CostLimitExceeded):
        matches(state, text, pattern)
    check_pattern(pattern, Budget(MAX_STEPS))  # a check that takes too long is no error


def test_cost_grows_with_the_text_and_the_pattern() -> None:
    def steps(pattern: str, text: str) -> int:
        matches(run(), text, pattern)  # compiles it
        state = run()
        matches(state, text, pattern)
        return MAX_STEPS - state.budget.left

    short = steps("[ab]{9}c", "x" * 100)
    assert steps("[ab]{9}c", "x" * 1_000) > 5 * short
    assert steps("[ab]{90}c", "x" * 100) > 5 * short
    assert steps("[ab]{9}c", "é" * 100) > steps("[ab]{9}c", "x" * 150)


def test_pattern_too_large_for_the_budget_can_be_used_in_a_process_of_its_own() -> None:
    pattern = r"^\pL{30}$"
    with pytest.raises(CostLimitExceeded):
        matches(run(), "é" * 30, pattern)
    assert matches(Run({}, Budget(10**9, isolated=True)), "é" * 30, pattern)


def test_known_pattern_costs_less() -> None:
    pattern = "known{2}"
    for _ in range(2):
        state = run()
        matches(state, "known", pattern)
    assert MAX_STEPS - state.budget.left < 100


def test_cache_is_limited() -> None:
    for number in range(2 * CACHED):
        matches(run(), "x", f"cached {number}")
    assert len(patterns._cache) <= CACHED
