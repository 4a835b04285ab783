"""What was measured, and the table of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    benchmark: str
    database: str
    measured: str
    value: str
    target: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def spread(values: Sequence[float], unit: str = "ms", digits: int = 1) -> str:
    """Median, 95th percentile and maximum in one text."""
    shown = (percentile(values, 0.5), percentile(values, 0.95), max(values))
    return "p50 {:.{d}f}, p95 {:.{d}f}, max {:.{d}f} {}".format(*shown, unit, d=digits)


def table(figures: Iterable[Figure]) -> str:
    """The figures as a Markdown table whose columns are aligned."""
    names = [field.name for field in fields(Figure)]
    rows = [names, *([getattr(figure, name) for name in names] for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
