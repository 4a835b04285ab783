"""Exponential backoff."""

from __future__ import annotations

import random

MAX_EXPONENT = 64
"""Larger exponents would overflow; every caller's maximum is reached long before."""


def backoff_seconds(attempt: int, *, initial: float, maximum: float, factor: float = 2.0, jitter: float = 0.1) -> float:
    """Seconds to wait after `attempt` consecutive failures, counted from 1.

    The wait starts at `initial` seconds, grows by `factor` and stays below `maximum`; up to `jitter` of it is added at
    random, so that clients that failed together do not retry together.
    """
    seconds = min(initial * factor ** min(attempt - 1, MAX_EXPONENT), maximum)
    return seconds * random.uniform(1, 1 + jitter)  # noqa: S311
