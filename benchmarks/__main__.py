"""`python -m benchmarks all|latency|throughput|…`: runs benchmarks and prints one table of results."""

from __future__ import annotations

import asyncio
import os
import platform
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from benchmarks import (
    bare,
    claim,
    expressions,
    fairness,
    idle,
    isolation,
    latency,
    llm_cache,
    llm_gateway,
    loops,
    scaling,
    startup,
    throughput,
    totals,
    waiters,
    waiting,
)
from benchmarks.api.command import KINDS, Database, api
from benchmarks.installation import BenchmarkEnvironment, create_environment
from benchmarks.neighbours.cases import CASES
from benchmarks.neighbours.measurement import Outcome, measure_case
from benchmarks.neighbours.table import cells, format_rows
from benchmarks.results import Result, format_table
from benchmarks.sizes import SMALL, Sizes

Measure = Callable[[BenchmarkEnvironment, str, Sizes], Awaitable[list[Result]]]

BENCHMARKS: dict[str, Measure] = {
    "latency": latency.measure,
    "throughput": throughput.measure,
    "scaling": scaling.measure,
    "startup": startup.measure,
    "idle": idle.measure,
    "waiting": waiting.measure,
    "waiters": waiters.measure,
    "loops": loops.measure,
    "fairness": fairness.measure,
    "claim": claim.measure,
    "bare": bare.measure,
    "isolation": isolation.measure,
    "expressions": expressions.measure,
    "totals": totals.measure,
    "llm_cache": llm_cache.measure,
    "llm_gateway": llm_gateway.measure,
}


NEIGHBOURS = "neighbours"
API = "api"


def main(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME…",
            help=f"all, or names of benchmarks: {', '.join(BENCHMARKS)}; or {NEIGHBOURS}, or {API} (api --help)",
        ),
    ],
    database: Annotated[Database, typer.Option(help="The databases to measure.")] = Database.BOTH,
    small: Annotated[bool, typer.Option(help="Only check that the benchmarks run; results are meaningless.")] = False,
    setting: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting for the measured processes.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"A case of {NEIGHBOURS}; all if not set.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help=f"Seconds of each attack of {NEIGHBOURS}.")] = 8,
) -> None:
    """Measure real processes on new databases, and print one Markdown table; `neighbours` prints one per database.

    PostgreSQL is the server at TEST_POSTGRES_URL, or else a temporary server.
    """
    settings = dict(pair.split("=", 1) for pair in setting or [])
    if names == [NEIGHBOURS]:
        if unknown := [name for name in case or [] if name not in CASES]:
            raise typer.BadParameter(f"unknown case: {', '.join(unknown)}; the cases are {', '.join(CASES)}")
        with create_environment(KINDS[database], settings) as environment:
            asyncio.run(_measure_neighbours(environment, case or list(CASES), seconds))
        return
    chosen = list(BENCHMARKS) if "all" in names else names
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        raise typer.BadParameter(f"unknown benchmark: {', '.join(unknown)}")
    load = _load()
    with create_environment(KINDS[database], settings) as environment:
        results = asyncio.run(_measure(environment, chosen, SMALL if small else Sizes()))
    header = [_machine(), f"load average before {load}, after {_load()}", *(setting or [])]
    typer.echo(f"{'; '.join(header)}\n\n{format_table(results)}")


async def _measure(environment: BenchmarkEnvironment, names: list[str], sizes: Sizes) -> list[Result]:
    results: list[Result] = []
    for name in names:
        for kind in environment.kinds:
            typer.echo(f"{name} on {kind} …", err=True)
            found = await BENCHMARKS[name](environment, kind, sizes)
            for result in found:
                typer.echo(f"  {result.measured}: {result.value}", err=True)
            results += found
    return results


async def _measure_neighbours(environment: BenchmarkEnvironment, names: list[str], seconds: float) -> None:
    for kind in environment.kinds:
        outcomes: list[Outcome] = []
        load = _load()
        for name in names:
            outcomes.append(await measure_case(environment, kind, CASES[name], seconds))
            typer.echo(f"{kind}: {' | '.join(cells(outcomes[-1]))}", err=True)
        typer.echo(f"{_machine()}; load average before {load}, after {_load()}; {kind}\n\n{format_rows(outcomes)}\n")


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores shared by all processes, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def _load() -> str:
    """Return the load average of the last minute. Other load on the machine affects every result."""
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    # Its options differ from those of the other benchmarks.
    if sys.argv[1:2] == [API]:
        del sys.argv[1]
        typer.run(api)
    else:
        typer.run(main)
