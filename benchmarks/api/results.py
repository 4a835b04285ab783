"""The results as files: JSON, Markdown and a plot, and tables in documents between two markers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.api import tables
from benchmarks.api.memory_growth import MemoryGrowth
from benchmarks.api.plot import draw
from benchmarks.api.samples import Row, Summary
from benchmarks.api.setup import Setup

DIRECTORY = Path("benchmarks/results")
BEGIN = "<!-- results of `make benchmark-api`: begin -->"
END = "<!-- results of `make benchmark-api`: end -->"


@dataclass(frozen=True)
class Results:
    """The results of one database."""

    setup: Setup
    rows: list[Row]
    memory: MemoryGrowth | None = None
    signed_in: tuple[Row, ...] = ()
    """The rows of requests with a token, which BloxServer verifies."""


def store(root: Path, results: Mapping[str, Results]) -> None:
    """Write all files below the root of the repository. Keeps the stored results of other databases."""
    stored = load(root) | dict(results)
    ordered = {database: stored[database] for database in sorted(stored)}
    directory = root / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({database: asdict(result) for database, result in ordered.items()}, indent=1)
    (directory / "api.json").write_text(text + "\n", encoding="utf-8")
    render(root)


def render(root: Path) -> None:
    """Write the tables and the plot of the stored results."""
    results = load(root)
    directory = root / DIRECTORY
    (directory / "api.svg").write_text(draw({name: each.rows for name, each in results.items()}), encoding="utf-8")
    (directory / "api.md").write_text(tables.all_results(results), encoding="utf-8")
    replace_between_markers(root / "README.md", tables.short(results))
    replace_between_markers(root / "docs" / "performance.md", tables.detailed(results))


def load(root: Path) -> dict[str, Results]:
    """Return the stored results by the name of the database."""
    file = root / DIRECTORY / "api.json"
    if not file.exists():
        return {}
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {database: _results(members) for database, members in stored.items()}


def _results(members: dict[str, Any]) -> Results:
    memory = members["memory"]
    return Results(
        setup=Setup(**members["setup"]),
        rows=list(map(_row, members["rows"])),
        memory=None if memory is None else MemoryGrowth(**memory),
        signed_in=tuple(map(_row, members["signed_in"])),
    )


def _row(members: dict[str, Any]) -> Row:
    variants = {variant: Summary(**summary) for variant, summary in members.pop("variants").items()}
    return Row(**members, variants=variants)


def replace_between_markers(document: Path, text: str) -> None:
    """Raise `ValueError` if the document has no markers."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document.name} has no markers for the results")
    document.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}", encoding="utf-8")
