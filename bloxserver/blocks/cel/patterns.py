"""Regular expressions that take linear time: Python's own can take for ever on a few characters."""

from __future__ import annotations

import re
from time import thread_time

import cel

from bloxserver.blocks.cel.values import Failure, Run

MAX_CHARACTERS = 65_536
STEPS_PER_SECOND = 2_000_000

_SEARCH = cel.compile("text.matches(pattern)")


def matches(run: Run, text: str, pattern: str) -> bool:
    """Whether the pattern is found anywhere in the text."""
    if len(text) > MAX_CHARACTERS:
        raise Failure(f"matches takes a text of at most {MAX_CHARACTERS} characters")
    started = thread_time()
    found = _search(text, pattern)
    # What a pattern costs cannot be told from its length: \w alone is thousands of ranges.
    run.budget.spend(int((thread_time() - started) * STEPS_PER_SECOND))
    return found


def check_pattern(pattern: str) -> None:
    """Raises `ValueError` for what is no regular expression."""
    try:
        _search("", pattern)
    except Failure as failure:
        raise ValueError(str(failure)) from None


def _search(text: str, pattern: str) -> bool:
    try:
        return bool(_SEARCH.execute({"text": text, "pattern": pattern}))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        reason = str(error).partition("regex parse error:")[2].partition(". Check function")[0].strip()
        detail = re.sub(r"\s+", " ", reason.rpartition("error:")[2]).strip() or "it is not valid, or too large"
        raise Failure(f"matches cannot use the regular expression: {detail[:200]}") from None
