"""The table of the cases, and the targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.neighbours.measurement import Outcome
from benchmarks.results import percentile

LIST_MS = 250
RUN_MS = 500
PROBE_MS = 100
MEMORY = 1_000_000_000
RECOVERED_MS = 1_000
MAX_CELL = 300

COLUMNS = (
    "case",
    "finding",
    "attack",
    "list p50/p95/p99/max ms",
    "run p50/p95/p99/max ms",
    "liveness max ms",
    "peak RSS MB",
    "victim's failures",
    "processes that exited",
    "5 s later",
    "the attacker was told",
    "targets",
)


def missed_targets(outcome: Outcome) -> list[str]:
    """Return the targets that the case misses."""
    samples = outcome.samples
    missed = {
        "list": percentile(samples.lists, 0.99) > LIST_MS,
        "run": percentile(samples.runs, 0.99) > RUN_MS,
        "liveness": max(samples.probes) > PROBE_MS,
    }
    return [name for name, failed in missed.items() if failed] + faults(outcome)


def faults(outcome: Outcome) -> list[str]:
    """Return what is wrong whatever the speed of the machine."""
    told = [*outcome.outcomes, *outcome.messages]
    faulty = {
        "RSS": outcome.peak_memory > MEMORY,
        "failures": bool(outcome.samples.failures),
        "exits": outcome.exited > 0,
        "recovery": not outcome.recovered.endswith(" ms"),
        "5xx": any(name.startswith(("500", "502", "504")) for name in told),
        "internal error": any("internal error" in name for name in told),
    }
    return [name for name, found in faulty.items() if found]


def format_rows(outcomes: Sequence[Outcome]) -> str:
    """Format the outcomes of one database as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(cells(outcome)) + " |" for outcome in outcomes])


def cells(outcome: Outcome) -> list[str]:
    case, samples = outcome.case, outcome.samples
    missed = missed_targets(outcome)
    return [
        case.name,
        case.finding,
        _cell(case.description),
        _summary(samples.lists),
        _summary(samples.runs),
        f"{max(samples.probes):.0f}",
        f"{outcome.peak_memory / 1_000_000:.0f}",
        _counted(Counter(samples.failures)) or "0",
        str(outcome.exited),
        outcome.recovered,
        _cell(_counted(outcome.outcomes) + "; " + _counted(outcome.messages)),
        f"missed: {', '.join(missed)}" if missed else "met",
    ]


def _summary(values: Sequence[float]) -> str:
    return "/".join(f"{percentile(values, share):.0f}" for share in (0.5, 0.95, 0.99, 1))


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{count} times {name}" for name, count in names.most_common(6))


def _cell(text: str) -> str:
    return text.strip("; ").replace("|", "\\|").replace("\n", " ")[:MAX_CELL]
