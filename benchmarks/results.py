"""Results of benchmarks, and their table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    benchmark: str
    database: str
    measured: str
    value: str
    target: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value such that at least this share of the values is not greater."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def summarize(values: Sequence[float], unit: str = "ms", digits: int = 1) -> str:
    """Format the median, the 95th percentile and the maximum."""
    statistics = (percentile(values, 0.5), percentile(values, 0.95), max(values))
    return "p50 {:.{d}f}, p95 {:.{d}f}, max {:.{d}f} {}".format(*statistics, unit, d=digits)


def format_table(results: Iterable[Result]) -> str:
    """Format the results as a Markdown table with aligned columns."""
    names = [field.name for field in fields(Result)]
    rows = [names, *([getattr(result, name) for name in names] for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
