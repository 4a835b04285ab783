"""`python -m tests.chaos`: the scenarios at length. Each prints its figures; what must not be ends with status 1."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Annotated, Any

import typer

from tests.chaos import deadly, frozen, hostile, kill, network, postgres, rolling, schedules
from tests.chaos.place import Place, private_place
from tests.chaos.processes import DEFAULT, Timing
from tests.chaos.report import Report

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None
)
BRISK = Timing(heartbeat=1, dead_after=4, sweep=1, drain=2)


class Backend(StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


On = Annotated[Backend, typer.Option("--database", help="Where it runs.")]
Seed = Annotated[int, typer.Option(help="Of what is left to chance.")]
Count = Annotated[int, typer.Option(min=1)]

Scenario = Callable[[Place], Coroutine[Any, Any, Report]]


def run(backend: Backend, *scenarios: Scenario) -> bool:
    """Run each on a new database, print what it found, and return whether all was as it must be."""
    found = [_run(backend, scenario) for scenario in scenarios]  # all of them, also after one that failed
    return all(found)


def _run(backend: Backend, scenario: Scenario) -> bool:
    begun = time.monotonic()
    with private_place(backend) as place:
        try:
            report = asyncio.run(scenario(place))
        except (AssertionError, TimeoutError) as failure:
            typer.echo(f"VIOLATED, {backend.value}: {failure or 'out of time'}\n")
            return False
    report.figure("took (s)", time.monotonic() - begun)
    typer.echo(f"{report}\n")
    return not report.violations


def run_kill(backend: Backend, executions: int, seed: int) -> bool:
    every = max(5, executions // 50)
    return run(
        backend,
        lambda place: kill.kill(place, executions=executions, every=every, per_second=30, timing=BRISK, seed=seed),
    )


def run_postgres(stops: int, seed: int) -> bool:
    return run(
        Backend.POSTGRESQL,
        lambda place: postgres.postgres(place, stops=stops, down=5, between=5, per_second=20, timing=BRISK, seed=seed),
    )


def run_frozen(backend: Backend, executions: int) -> bool:
    return run(backend, lambda place: frozen.frozen(place, executions=executions, timing=DEFAULT))


def run_schedules(backend: Backend, minutes: int, seed: int) -> bool:
    return run(
        backend,
        lambda place: schedules.schedules_made_due(place, schedules=50, rounds=8, timing=BRISK, seed=seed),
        lambda place: schedules.schedules_by_the_clock(place, schedules=20, minutes=minutes, timing=DEFAULT, seed=seed),
    )


def run_rolling(backend: Backend, rounds: int) -> bool:
    return run(backend, lambda place: rolling.rolling(place, rounds=rounds, per_second=30, timing=BRISK))


def run_network(rounds: int, seed: int) -> bool:
    return run(
        Backend.POSTGRESQL,
        lambda place: network.network(place, rounds=rounds, seconds=5, per_second=10, timing=DEFAULT, seed=seed),
    )


def run_hostile(backend: Backend, executions: int) -> bool:
    def holding(how: str) -> Scenario:
        return lambda place: hostile.hostile(place, how=how, executions=executions, timing=BRISK)

    return run(backend, holding("sleeps"), holding("computes"), holding("holds"))


def run_deadly(backend: Backend, executions: int) -> bool:
    return run(backend, lambda place: deadly.deadly(place, executions=executions, every=30, seconds=3, timing=BRISK))


def end(holds: bool) -> None:
    raise typer.Exit(not holds)


@app.command("kill")
def kill_command(executions: Count = 1000, database: On = Backend.POSTGRESQL, seed: Seed = 1) -> None:
    """kill -9 of API and workers at random."""
    end(run_kill(database, executions, seed))


@app.command("postgres")
def postgres_command(stops: Count = 5, seed: Seed = 1) -> None:
    """PostgreSQL stopped hard, and started again, under load."""
    end(run_postgres(stops, seed))


@app.command("frozen")
def frozen_command(executions: Count = 40, database: On = Backend.POSTGRESQL) -> None:
    """A worker that is stopped for longer than it may be silent, and comes back."""
    end(run_frozen(database, executions))


@app.command("schedules")
def schedules_command(minutes: Count = 4, database: On = Backend.POSTGRESQL, seed: Seed = 1) -> None:
    """Schedules on two replicas, one of which is killed."""
    end(run_schedules(database, minutes, seed))


@app.command("rolling")
def rolling_command(rounds: Count = 3, database: On = Backend.POSTGRESQL) -> None:
    """A rolling restart of all processes under load."""
    end(run_rolling(database, rounds))


@app.command("network")
def network_command(rounds: Count = 2, seed: Seed = 1) -> None:
    """A network before PostgreSQL that is slow, cut, and silent."""
    end(run_network(rounds, seed))


@app.command("hostile")
def hostile_command(executions: Count = 4, database: On = Backend.POSTGRESQL) -> None:
    """Blocks that do not give the event loop back, or not even the interpreter."""
    end(run_hostile(database, executions))


@app.command("deadly")
def deadly_command(executions: Count = 60, database: On = Backend.POSTGRESQL) -> None:
    """Executions that kill each worker that runs them, beside others."""
    end(run_deadly(database, executions))


@app.command("all")
def all_command(seed: Seed = 1) -> None:
    """All of them, on both databases where that makes sense; half an hour."""
    held = [
        held
        for backend in Backend
        for held in (
            run_kill(backend, 1000, seed),
            run_rolling(backend, 3),
            run_frozen(backend, 40),
            run_schedules(backend, 4, seed),
            run_hostile(backend, 4),
            run_deadly(backend, 60),
        )
    ]
    end(all([*held, run_postgres(5, seed), run_network(2, seed)]))


app()
