"""Regular expressions of RE2, in linear time. Those of Python's `re` can take exponential time on short texts."""

from __future__ import annotations

from dataclasses import dataclass
from time import thread_time

import re2

from bloxserver.blocks.cel.values import CHARACTERS_PER_STEP, Budget, CostLimitExceeded, EvaluationError, Run

MAX_CHARACTERS = 65_536
CACHED = 64
MAX_MEMORY = 256 * 1024
"""The memory of a compiled pattern in bytes, which also limits the time to compile repetitions."""
MAX_ISOLATED_MEMORY = 8 * 1024 * 1024
STEPS_PER_SECOND = 4_000_000
"""The steps for a measured second."""
STEPS_OF_COMPILING = 120
STEPS_PER_CHARACTER = 6
STEPS_PER_CLASS = 700
"""For a Unicode class such as \\pL, which has hundreds of ranges."""
STEPS_PER_REPETITION = 100
STEPS_OF_REPETITIONS = 8_000
STEPS_OF_SEARCH = 20
SEARCHED_PER_STEP = 28
"""Bytes of the text, multiplied by instructions of the pattern. This is the rate of RE2's slowest algorithm: it selects
a faster one if that needs little memory for this pattern and text.
"""
_TOO_LARGE = "pattern too large"


@dataclass(frozen=True)
class _Pattern:
    expression: re2._Regexp
    instructions: int

    def search(self, text: bytes) -> bool:
        return self.expression.search(text) is not None


_cache: dict[tuple[str, int], _Pattern] = {}
"""The last compiled patterns, by text and memory. A dict and not a `lru_cache`, because a known pattern costs less."""


def matches(run: Run, text: str, pattern: str) -> bool:
    """Return whether the pattern matches anywhere in the text."""
    if max(len(text), len(pattern)) > MAX_CHARACTERS:
        raise EvaluationError(f"matches accepts texts of at most {MAX_CHARACTERS} characters")
    encoded = text.encode(errors="surrogatepass")
    if run.budget.isolated:
        # The estimate is much too high for most searches, and the process has a time limit.
        started = thread_time()
        found = _compiled(pattern, MAX_ISOLATED_MEMORY).search(encoded)
        run.budget.consume(int((thread_time() - started) * STEPS_PER_SECOND))
        return found
    compiled = _compile(pattern, run.budget)
    run.budget.consume(STEPS_OF_SEARCH + (1 + len(encoded)) * compiled.instructions // SEARCHED_PER_STEP)
    return compiled.search(encoded)


def check_pattern(pattern: str, budget: Budget) -> None:
    """Raise `ValueError` for an invalid regular expression, unless the check exceeds the budget."""
    try:
        _compile(pattern, budget)
    except EvaluationError as failure:
        raise ValueError(str(failure)) from None
    except CostLimitExceeded:
        pass  # reported when the expression is evaluated


def _compile(pattern: str, budget: Budget) -> _Pattern:
    """Return the compiled pattern. The most that compiling can cost is consumed first, and the rest is given back."""
    budget.consume(len(pattern) // CHARACTERS_PER_STEP)
    if known := _cache.get((pattern, MAX_MEMORY)):
        return known
    certain = STEPS_OF_COMPILING + STEPS_PER_CHARACTER * len(pattern)
    estimate = certain + STEPS_PER_CLASS * (pattern.count("\\p") + pattern.count("\\P"))
    if repetitions := pattern.count("{"):
        estimate += STEPS_OF_REPETITIONS + STEPS_PER_REPETITION * repetitions
    budget.consume(estimate)
    try:
        compiled = _compiled(pattern, MAX_MEMORY)
    except _PatternTooLarge:
        # An isolated process decides: it has more memory.
        raise CostLimitExceeded from None
    budget.left += max(0, estimate - certain - 2 * compiled.instructions)
    return compiled


class _PatternTooLarge(EvaluationError):
    pass


def _compiled(pattern: str, memory: int) -> _Pattern:
    key = (pattern, memory)
    compiled = _cache.get(key)
    if compiled is None:
        if len(_cache) >= CACHED:
            _cache.pop(next(iter(_cache)), None)
        compiled = _cache[key] = _new(pattern, memory)
    return compiled


def _new(pattern: str, memory: int) -> _Pattern:
    options = re2.Options()
    options.max_mem = memory
    options.log_errors = False
    options.never_capture = True
    try:
        expression = re2.compile(pattern.encode(errors="surrogatepass"), options)
        instructions = max(expression.programsize, expression.reverseprogramsize)
    except re2.error as failure:
        reason = failure.args[0]
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        kind = _PatternTooLarge if reason.startswith(_TOO_LARGE) else EvaluationError
        raise kind(f"matches cannot use the regular expression: {reason[:200]}") from None
    finally:
        re2.purge()  # its own cache has no limit on memory
    return _Pattern(expression, instructions)
