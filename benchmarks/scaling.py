"""What a second worker adds, on the same machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median

from benchmarks.figures import Figure
from benchmarks.installation import SQLITE, Laboratory
from benchmarks.sizes import Sizes
from benchmarks.throughput import Run, empty_backlog


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """Rates without the start and the tail, in which workers are not all at work. SQLite has one worker.

    One worker and two take turns, so that what else goes on at the machine meets both.
    """
    if kind == SQLITE:
        return []
    runs: dict[int, list[Run]] = {1: [], 2: []}
    for _ in range(sizes.rounds):
        for workers, of_workers in runs.items():
            of_workers.append(await empty_backlog(laboratory, kind, sizes, workers=workers))
    ratio = _rate(runs[2]) / _rate(runs[1])
    return [
        Figure("scaling", kind, f"one worker, median of {sizes.rounds}", _shown(runs[1])),
        Figure("scaling", kind, f"two workers, median of {sizes.rounds}", _shown(runs[2])),
        Figure("scaling", kind, f"two to one, {os.cpu_count()} cores for all", f"{ratio:.2f}", ">= 1.6"),
    ]


def _rate(runs: Sequence[Run]) -> float:
    return median(run.steady_rate for run in runs)


def _shown(runs: Sequence[Run]) -> str:
    last = runs[-1]
    return f"{_rate(runs):.0f}/s; the last one used {last.cpu()} in {last.seconds:.1f} s"
