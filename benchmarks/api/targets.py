"""The targets of the API, and whether results reach them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.api.memory_growth import MemoryGrowth
from benchmarks.api.requests import BARE, COUNTING
from benchmarks.api.samples import Row

CONCURRENCY = 16
SHORT, MEDIUM, LONG = 1_000, 100_000, 1_000_000
MEBIBYTE = 1024 * 1024
MEMORY_REQUESTS = 100_000
MAX_GROWTH_MEBIBYTES = 2


@dataclass(frozen=True)
class Target:
    """A figure must not be below `least` and not above `most`."""

    meaning: str
    figure: Callable[[Sequence[Row], MemoryGrowth | None], float | None]
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def limit(self) -> str:
        return f"≥ {self.least:g}{self.unit}" if self.least is not None else f"≤ {self.most:g}{self.unit}"

    def is_reached(self, figure: float) -> bool:
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)


def check(rows: Sequence[Row], memory: MemoryGrowth | None) -> Iterator[tuple[Target, float | None]]:
    """Yield each target and its figure; None if it was not measured."""
    for target in TARGETS:
        yield target, target.figure(rows, memory)


def find_row(rows: Sequence[Row], endpoint: str, history: int) -> Row | None:
    wanted = (endpoint, history, CONCURRENCY)
    return next((row for row in rows if (row.endpoint, row.history, row.concurrency) == wanted), None)


def _ratio(endpoint: str, history: int, variant: str) -> Callable[[Sequence[Row], MemoryGrowth | None], float | None]:
    def figure(rows: Sequence[Row], memory: MemoryGrowth | None) -> float | None:
        row = find_row(rows, endpoint, history)
        return None if row is None or variant not in row.variants else row.variants[variant].ratio

    return figure


def _slowdown(endpoint: str) -> Callable[[Sequence[Row], MemoryGrowth | None], float | None]:
    def figure(rows: Sequence[Row], memory: MemoryGrowth | None) -> float | None:
        short, long = find_row(rows, endpoint, SHORT), find_row(rows, endpoint, LONG)
        return None if short is None or long is None or not long.ours.rate else short.ours.rate / long.ours.rate

    return figure


def _growth(rows: Sequence[Row], memory: MemoryGrowth | None) -> float | None:
    if memory is None or memory.requests < MEMORY_REQUESTS:
        return None
    return (memory.rss_after - memory.rss_before) / MEBIBYTE


TARGETS = (
    Target("webhook: ratio to the bare server", _ratio("webhook", SHORT, BARE), least=0.5),
    Target(
        "list at 1,000 executions: ratio to the bare server that counts", _ratio("list", SHORT, COUNTING), least=0.35
    ),
    Target(
        "stats at 1,000 executions: ratio to the bare server that counts", _ratio("stats", SHORT, COUNTING), least=0.35
    ),
    Target(
        "list at 100,000 executions: ratio to the bare server that counts", _ratio("list", MEDIUM, COUNTING), least=4
    ),
    Target(
        "stats at 100,000 executions: ratio to the bare server that counts", _ratio("stats", MEDIUM, COUNTING), least=7
    ),
    Target("webhook: requests/s at 1,000 executions, divided by those at 1,000,000", _slowdown("webhook"), most=1.3),
    Target("list: the same", _slowdown("list"), most=1.3),
    Target("stats: the same", _slowdown("stats"), most=1.3),
    Target("memory (RSS) that 100,000 requests add", _growth, most=MAX_GROWTH_MEBIBYTES, unit=" MiB"),
)
