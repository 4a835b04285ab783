"""Regular expressions in linear time. Those of Python's `re` can take exponential time on short texts."""

from __future__ import annotations

import re
from time import thread_time

import cel

from bloxserver.blocks.cel.values import EvaluationError, Run

MAX_CHARACTERS = 65_536
STEPS_PER_SECOND = 2_000_000

_SEARCH = cel.compile("text.matches(pattern)")


def matches(run: Run, text: str, pattern: str) -> bool:
    """Return whether the pattern matches anywhere in the text."""
    if len(text) > MAX_CHARACTERS:
        raise EvaluationError(f"matches accepts texts of at most {MAX_CHARACTERS} characters")
    started = thread_time()
    found = _search(text, pattern)
    # The cost is measured, because it does not depend on the pattern's length: \w alone is thousands of ranges.
    run.budget.consume(int((thread_time() - started) * STEPS_PER_SECOND))
    return found


def check_pattern(pattern: str) -> None:
    """Raise `ValueError` for an invalid regular expression."""
    try:
        _search("", pattern)
    except EvaluationError as failure:
        raise ValueError(str(failure)) from None


def _search(text: str, pattern: str) -> bool:
    try:
        return bool(_SEARCH.execute({"text": text, "pattern": pattern}))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is not an Exception
        reason = str(error).partition("regex parse error:")[2].partition(". Check function")[0].strip()
        detail = re.sub(r"\s+", " ", reason.rpartition("error:")[2]).strip() or "it is not valid, or too large"
        raise EvaluationError(f"matches cannot use the regular expression: {detail[:200]}") from None
