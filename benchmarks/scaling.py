"""What a second worker adds, on the same machine."""

from __future__ import annotations

import os

from benchmarks.figures import Figure
from benchmarks.installation import SQLITE, Laboratory
from benchmarks.sizes import Sizes
from benchmarks.throughput import empty_backlog


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """Rates without the start and the tail, in which workers are not all at work. SQLite has one worker."""
    if kind == SQLITE:
        return []
    one = await empty_backlog(laboratory, kind, sizes, workers=1)
    two = await empty_backlog(laboratory, kind, sizes, workers=2)
    cores = os.cpu_count()
    return [
        Figure("scaling", kind, "one worker", f"{one.steady_rate:.0f}/s; {one.cpu()} in {one.seconds:.1f} s"),
        Figure("scaling", kind, "two workers", f"{two.steady_rate:.0f}/s; {two.cpu()} in {two.seconds:.1f} s"),
        Figure(
            "scaling", kind, f"two to one, {cores} cores for all", f"{two.steady_rate / one.steady_rate:.2f}", ">= 1.6"
        ),
    ]
