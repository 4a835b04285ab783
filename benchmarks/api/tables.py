"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.api import plot, targets
from benchmarks.api.memory_growth import MemoryGrowth
from benchmarks.api.requests import BARE, COUNTING, KEPT, OURS
from benchmarks.api.samples import Row, Summary

if TYPE_CHECKING:
    from benchmarks.api.results import Results

MEBIBYTE = 1024 * 1024
NOT_MEASURED = "-"
MAX_WITH_DECIMALS = 100
HEADER = (
    "endpoint",
    "executions",
    "c",
    "BloxServer, requests/s",
    "p50 / p99 ms",
    "CPU ms, PostgreSQL's",
    "bare server, requests/s",
    "with kept totals",
    "ratio",
    "ratio to kept totals",
)
VARIANTS_HEADER = (
    "endpoint",
    "executions",
    "c",
    "server",
    "requests/s",
    "p50 / p99 ms",
    "CPU ms",
    "CPU ms of PostgreSQL",
    "ratio",
)
NAMES = {OURS: "BloxServer", BARE: "bare", COUNTING: "bare, counts", KEPT: "bare, kept totals"}
SHORT_ENDPOINTS = ("webhook", "list", "stats")
SHORT_TEXT = (
    "Measured with 16 connections and the server on one core. The ratio is the rate of BloxServer divided by that of\n"
    "the bare server, which counts the executions for each list and for the statistics."
)


def short(results: Mapping[str, Results]) -> str:
    """The table of the README: the endpoints that depend on the history, at 16 connections."""
    if not results:
        return ""
    rows: list[Sequence[str]] = [("", "executions", *results)]
    shown = [
        (row.endpoint, row.history)
        for name in SHORT_ENDPOINTS
        for row in next(iter(results.values())).rows
        if row.endpoint == name and row.concurrency == targets.CONCURRENCY
    ]
    for endpoint, history in shown:
        found = [targets.find_row(each.rows, endpoint, history) for each in results.values()]
        rows.append((endpoint, f"{history:,}", *(NOT_MEASURED if row is None else _brief(row) for row in found)))
    return "\n\n".join([f"![{plot.TITLE}](benchmarks/results/api.svg)", SHORT_TEXT, markdown(rows)])


def _brief(row: Row) -> str:
    bare = row.variants.get(COUNTING) or row.variants.get(BARE)
    ratio = "" if bare is None or bare.ratio is None else f", ratio {_number(bare.ratio)}"
    return f"{row.ours.rate:,.0f}/s{ratio}, p50 {row.ours.p50_ms:.1f} ms"


def detailed(results: Mapping[str, Results]) -> str:
    """The plot and tables of the document: targets, and all endpoints at 16 connections."""
    plotted = f"![{plot.TITLE}](../benchmarks/results/api.svg)"
    parts = [plotted, _targets(results), "[All results](../benchmarks/results/api.md)"]
    for database, each in results.items():
        rows = [row for row in each.rows if row.concurrency == targets.CONCURRENCY]
        parts.append(f"**{database}**, 16 connections. {each.setup.line}.\n\n{format_rows(rows)}")
        if each.memory is not None:
            parts.append(_memory(each.memory))
        if each.signed_in:
            parts.append(f"**{database}**, with a token that is verified:\n\n{format_rows(each.signed_in)}")
    return "\n\n".join(part for part in parts if part)


def all_results(results: Mapping[str, Results]) -> str:
    """The complete results."""
    parts = ["# The API against a bare server", "[What is compared](../../docs/performance.md#api)", _targets(results)]
    for database, each in results.items():
        parts += [f"## {database}", f"{each.setup.line}.", format_variants(each.rows)]
        if each.memory is not None:
            parts.append(_memory(each.memory))
        if each.signed_in:
            parts += ["With a token that is verified:", format_variants(each.signed_in)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _targets(results: Mapping[str, Results]) -> str:
    if not results:
        return ""
    checked = [list(targets.check(each.rows, each.memory)) for each in results.values()]
    rows: list[Sequence[str]] = [("16 connections", "target", *results)]
    for figures in zip(*checked, strict=True):
        target = figures[0][0]
        rows.append((target.meaning, target.limit, *(_figure(target, figure) for _, figure in figures)))
    return markdown(rows)


def _figure(target: targets.Target, figure: float | None) -> str:
    if figure is None:
        return NOT_MEASURED
    return f"{_number(figure)}{target.unit}{'' if target.is_reached(figure) else ' (missed)'}"


def _memory(memory: MemoryGrowth) -> str:
    before, after = (
        f"RSS {rss / MEBIBYTE:.1f} MiB, PSS {pss / MEBIBYTE:.1f} MiB"
        for rss, pss in ((memory.rss_before, memory.pss_before), (memory.rss_after, memory.pss_after))
    )
    return f"Memory before {memory.requests:,} requests to all endpoints in turn: {before}; after them: {after}."


def format_rows(rows: Iterable[Row]) -> str:
    """Format one line for each row."""
    return markdown([HEADER, *map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
    ours = row.ours
    counting, kept = row.variants.get(COUNTING) or row.variants.get(BARE), row.variants.get(KEPT)
    database = "" if ours.database_cpu_ms is None else f", {ours.database_cpu_ms:.2f}"
    return (
        row.endpoint,
        f"{row.history:,}",
        str(row.concurrency),
        *_latency(ours),
        f"{ours.cpu_ms:.2f}{database}",
        *(NOT_MEASURED if bare is None else f"{bare.rate:,.0f}" for bare in (counting, kept)),
        *(NOT_MEASURED if bare is None or bare.ratio is None else _number(bare.ratio) for bare in (counting, kept)),
    )


def format_variants(rows: Iterable[Row]) -> str:
    """Format one line for each server of each row."""
    return markdown(
        [
            VARIANTS_HEADER,
            *(
                (
                    row.endpoint,
                    f"{row.history:,}",
                    str(row.concurrency),
                    NAMES[variant],
                    *_latency(summary),
                    f"{summary.cpu_ms:.2f}",
                    NOT_MEASURED if summary.database_cpu_ms is None else f"{summary.database_cpu_ms:.2f}",
                    NOT_MEASURED if summary.ratio is None else _number(summary.ratio),
                )
                for row in rows
                for variant, summary in sorted(row.variants.items(), key=lambda item: list(NAMES).index(item[0]))
            ),
        ]
    )


def _latency(summary: Summary) -> Iterator[str]:
    failed = f" ({summary.failed} failed)" if summary.failed else ""
    yield f"{summary.rate:,.0f}{failed}"
    yield f"{summary.p50_ms:.1f} / {summary.p99_ms:.1f}"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < MAX_WITH_DECIMALS else f"{value:,.0f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format a table. The first row is the header."""
    header, *others = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *others])
