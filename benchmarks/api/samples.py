"""Measured values, and their medians."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from benchmarks.api.requests import OURS


@dataclass(frozen=True)
class Sample:
    """One variant in one round."""

    history: int
    endpoint: str
    concurrency: int
    variant: str
    round: int
    rate: float
    """Requests per second."""
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """CPU time of the server per request."""
    database_cpu_ms: float | None
    """CPU time of PostgreSQL per request."""
    answered: int
    """All answers, also those of the warm-up."""
    failed: int
    """Requests that were answered with 5xx, or not at all."""


@dataclass(frozen=True)
class Summary:
    """The medians of the rounds of one variant."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    database_cpu_ms: float | None
    failed: int
    """The sum of the rounds."""
    ratio: float | None
    """The rate of ours, divided by the rate of this variant in the same round; None for ours."""


@dataclass(frozen=True)
class Row:
    """One endpoint with one history and one concurrency."""

    history: int
    endpoint: str
    concurrency: int
    variants: dict[str, Summary]

    @property
    def ours(self) -> Summary:
        return self.variants[OURS]


def summarize(samples: Iterable[Sample]) -> list[Row]:
    """Return one row for each thing that was measured, in the order of the samples."""
    groups: dict[tuple[int, str, int], dict[str, list[Sample]]] = {}
    for sample in samples:
        key = (sample.history, sample.endpoint, sample.concurrency)
        groups.setdefault(key, {}).setdefault(sample.variant, []).append(sample)
    return [
        Row(*key, {variant: _summary(variant, rounds, variants[OURS]) for variant, rounds in variants.items()})
        for key, variants in groups.items()
    ]


def _summary(variant: str, rounds: list[Sample], ours: list[Sample]) -> Summary:
    def middle(value: Callable[[Sample], float]) -> float:
        return median(map(value, rounds))

    rates = {sample.round: sample.rate for sample in ours}
    ratios = [rates[sample.round] / sample.rate for sample in rounds if sample.rate and sample.round in rates]
    database = [sample.database_cpu_ms for sample in rounds if sample.database_cpu_ms is not None]
    return Summary(
        rate=middle(lambda sample: sample.rate),
        p50_ms=middle(lambda sample: sample.p50_ms),
        p99_ms=middle(lambda sample: sample.p99_ms),
        cpu_ms=middle(lambda sample: sample.cpu_ms),
        database_cpu_ms=median(database) if database else None,
        failed=sum(sample.failed for sample in rounds),
        ratio=None if variant == OURS or not ratios else median(ratios),
    )
