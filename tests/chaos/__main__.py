"""`python -m tests.chaos`: the scenarios, at length; each prints its figures and ends with 1 where one must not be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated

import typer

from tests.chaos.kill import kill as kill_processes
from tests.chaos.place import Place, private_place
from tests.chaos.processes import Timing
from tests.chaos.report import Report

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Backend(StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


Executions = Annotated[int, typer.Option(min=1, help="Executions that must be acknowledged.")]
On = Annotated[Backend, typer.Option("--database", help="Where the scenario runs.")]
Seed = Annotated[int, typer.Option(help="Of what is left to chance.")]

KILL_TIMING = Timing(heartbeat=1, dead_after=4, sweep=1, drain=2)


def show(backend: Backend, scenario: Callable[[Place], Awaitable[Report]]) -> None:
    """Run a scenario, print what it found, and end the command where that must not be."""

    async def run(place: Place) -> Report:
        return await scenario(place)

    with private_place(backend) as place:
        report = asyncio.run(run(place))
    typer.echo(f"{report}\n")
    if report.violations:
        raise typer.Exit(1)


@app.command()
def kill(executions: Executions = 1000, database: On = Backend.POSTGRESQL, seed: Seed = 1) -> None:
    """kill -9 of API and workers at random."""
    show(
        database,
        lambda place: kill_processes(
            place, executions=executions, per_second=20, pauses=(1, 3), timing=KILL_TIMING, seed=seed
        ),
    )


@app.command()
def other() -> None: ...


app()
