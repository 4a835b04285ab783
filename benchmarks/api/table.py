"""The table of the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from benchmarks.api.measurement import Sample
from benchmarks.api.requests import BARE, COUNTING, KEPT, OURS

HEADER = (
    "database",
    "executions",
    "endpoint",
    "c",
    "ours, requests/s",
    "p50 / p99 ms",
    "CPU ms",
    "bare server, requests/s",
    "CPU ms of it",
    "ratio",
)
Key = tuple[str, int, str, int]


@dataclass(frozen=True)
class Summary:
    """The medians of the rounds of one variant."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    database_cpu_ms: float | None
    ratio: float | None
    """The rate of ours to the rate of this variant, in the same round."""


def summarize(samples: Iterable[Sample]) -> dict[Key, dict[str, Summary]]:
    """Return the medians by what was measured, and by variant."""
    groups: dict[Key, dict[str, list[Sample]]] = {}
    for sample in samples:
        key = (sample.database, sample.history, sample.endpoint, sample.concurrency)
        groups.setdefault(key, {}).setdefault(sample.variant, []).append(sample)
    return {
        key: {variant: _summary(variant, rounds, variants[OURS]) for variant, rounds in variants.items()}
        for key, variants in groups.items()
    }


def _summary(variant: str, rounds: list[Sample], ours: list[Sample]) -> Summary:
    def of(value: Callable[[Sample], float]) -> float:
        return median(map(value, rounds))

    rates = {sample.round: sample.rate for sample in ours}
    database = [sample.database_cpu_ms for sample in rounds if sample.database_cpu_ms is not None]
    return Summary(
        rate=of(lambda sample: sample.rate),
        p50_ms=of(lambda sample: sample.p50_ms),
        p99_ms=of(lambda sample: sample.p99_ms),
        cpu_ms=of(lambda sample: sample.cpu_ms),
        database_cpu_ms=median(database) if database else None,
        ratio=None if variant == OURS else of(lambda sample: rates[sample.round] / max(sample.rate, 1e-9)),
    )


def format_samples(samples: Iterable[Sample]) -> str:
    """Format one row for each endpoint and variant of the bare server."""
    rows: list[tuple[str, ...]] = [HEADER]
    for (database, history, endpoint, concurrency), variants in summarize(samples).items():
        ours = variants[OURS]
        for variant in (BARE, COUNTING, KEPT):
            if variant not in variants:
                continue
            bare = variants[variant]
            rows.append(
                (
                    database,
                    f"{history:,}",
                    endpoint,
                    str(concurrency),
                    f"{ours.rate:,.0f}",
                    f"{ours.p50_ms:.1f} / {ours.p99_ms:.1f}",
                    f"{ours.cpu_ms:.2f}",
                    f"{variant} {bare.rate:,.0f}",
                    f"{bare.cpu_ms:.2f}",
                    f"{bare.ratio:.2f}",
                )
            )
    return markdown(rows)


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Format a Markdown table with aligned columns. The first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
