"""Measures the speedup of a second worker on the same machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median

from benchmarks.installation import SQLITE, BenchmarkEnvironment
from benchmarks.results import Result
from benchmarks.sizes import Sizes
from benchmarks.throughput import Run, run_backlog


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Compare the rates of one and two workers, without ramp-up and tail. SQLite supports only one worker.

    Runs with one and two workers alternate, so that other load on the machine affects both.
    """
    if kind == SQLITE:
        return []
    runs: dict[int, list[Run]] = {1: [], 2: []}
    for _ in range(sizes.rounds):
        for workers, results in runs.items():
            results.append(await run_backlog(environment, kind, sizes, workers=workers))
    ratio = _rate(runs[2]) / _rate(runs[1])
    return [
        Result("scaling", kind, f"one worker, median of {sizes.rounds}", _format_runs(runs[1])),
        Result("scaling", kind, f"two workers, median of {sizes.rounds}", _format_runs(runs[2])),
        Result("scaling", kind, f"speedup of two workers, {os.cpu_count()} cores in total", f"{ratio:.2f}", ">= 1.6"),
    ]


def _rate(runs: Sequence[Run]) -> float:
    return median(run.steady_rate for run in runs)


def _format_runs(runs: Sequence[Run]) -> str:
    last = runs[-1]
    return f"{_rate(runs):.0f}/s; last run used {last.cpu()} in {last.seconds:.1f} s"
