"""`python -m benchmarks all|latency|throughput|…`: measure, and print one table."""

from __future__ import annotations

import asyncio
import os
import platform
import sqlite3
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated

import typer

from benchmarks import bare, claim, fairness, idle, latency, scaling, throughput, waiting
from benchmarks.figures import Figure, table
from benchmarks.installation import POSTGRESQL, SQLITE, Laboratory, laboratory
from benchmarks.sizes import SMALL, Sizes

Measure = Callable[[Laboratory, str, Sizes], Awaitable[list[Figure]]]

BENCHMARKS: dict[str, Measure] = {
    "latency": latency.measure,
    "throughput": throughput.measure,
    "scaling": scaling.measure,
    "idle": idle.measure,
    "waiting": waiting.measure,
    "fairness": fairness.measure,
    "claim": claim.measure,
    "bare": bare.measure,
}


class Databases(StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    BOTH = "both"


KINDS = {
    Databases.SQLITE: [SQLITE],
    Databases.POSTGRESQL: [POSTGRESQL],
    Databases.BOTH: [POSTGRESQL, SQLITE],
}


def main(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help=f"all, or some of: {', '.join(BENCHMARKS)}")],
    database: Annotated[Databases, typer.Option(help="What to run on.")] = Databases.BOTH,
    small: Annotated[bool, typer.Option(help="Only see that everything runs; the figures mean nothing.")] = False,
    setting: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the measured processes.")
    ] = None,
) -> None:
    """Measure real processes on databases of their own, and print one table in Markdown.

    PostgreSQL is the server of TEST_POSTGRES_URL, or one that is started for this.
    """
    chosen = list(BENCHMARKS) if "all" in names else names
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        raise typer.BadParameter(f"no such benchmark: {', '.join(unknown)}")
    settings = dict(pair.split("=", 1) for pair in setting or [])
    load = _load()
    with laboratory(KINDS[database], settings) as place:
        figures = asyncio.run(_measure(place, chosen, SMALL if small else Sizes()))
    shown = [_machine(), f"load average before {load}, after {_load()}", *(setting or [])]
    typer.echo(f"{'; '.join(shown)}\n\n{table(figures)}")


async def _measure(place: Laboratory, names: list[str], sizes: Sizes) -> list[Figure]:
    figures: list[Figure] = []
    for name in names:
        for kind in place.kinds:
            typer.echo(f"{name} on {kind} …", err=True)
            found = await BENCHMARKS[name](place, kind, sizes)
            for figure in found:
                typer.echo(f"  {figure.measured}: {figure.value}", err=True)
            figures += found
    return figures


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores shared by all processes, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def _load() -> str:
    """Of the last minute: what else goes on at the machine is in every figure."""
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    typer.run(main)
