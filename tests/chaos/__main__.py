"""`python -m tests.chaos`: runs the chaos scenarios and prints their results. Exits with status 1 on a violation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Annotated, Any

import typer

from tests.chaos import deadly, frozen, hostile, kill, network, postgres, rolling, schedules
from tests.chaos.processes import DEFAULT, Timing
from tests.chaos.report import Report
from tests.chaos.workspace import Workspace, private_workspace

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None
)
SHORT = Timing(heartbeat=1, heartbeat_timeout=4, poll_interval=1, shutdown_grace=2)


class Backend(StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


On = Annotated[Backend, typer.Option("--database", help="The database to use.")]
Seed = Annotated[int, typer.Option(help="Seed of the random choices.")]
Count = Annotated[int, typer.Option(min=1)]

Scenario = Callable[[Workspace], Coroutine[Any, Any, Report]]


def run(backend: Backend, *scenarios: Scenario) -> bool:
    """Run each scenario on a new database, print its report, and return whether all checks passed."""
    found = [_run(backend, scenario) for scenario in scenarios]  # every scenario runs, also after a failure
    return all(found)


def _run(backend: Backend, scenario: Scenario) -> bool:
    started = time.monotonic()
    with private_workspace(backend) as workspace:
        try:
            report = asyncio.run(scenario(workspace))
        except (AssertionError, TimeoutError) as failure:
            typer.echo(f"VIOLATED, {backend.value}: {failure or 'timed out'}\n")
            return False
    report.record("duration (s)", time.monotonic() - started)
    typer.echo(f"{report}\n")
    return not report.violations


def run_kill(backend: Backend, executions: int, seed: int) -> bool:
    every = max(5, executions // 50)
    return run(
        backend,
        lambda workspace: kill.kill(
            workspace, executions=executions, every=every, per_second=30, timing=SHORT, seed=seed
        ),
    )


def run_postgres(stops: int, seed: int) -> bool:
    return run(
        Backend.POSTGRESQL,
        lambda workspace: postgres.postgres(
            workspace, stops=stops, down=5, between=5, per_second=20, timing=SHORT, seed=seed
        ),
    )


def run_frozen(backend: Backend, executions: int) -> bool:
    return run(backend, lambda workspace: frozen.frozen(workspace, executions=executions, timing=DEFAULT))


def run_schedules(backend: Backend, minutes: int, seed: int) -> bool:
    return run(
        backend,
        lambda workspace: schedules.schedules_made_due(workspace, schedules=50, rounds=8, timing=SHORT, seed=seed),
        lambda workspace: schedules.schedules_every_minute(
            workspace, schedules=20, minutes=minutes, timing=DEFAULT, seed=seed
        ),
    )


def run_rolling(backend: Backend, rounds: int) -> bool:
    return run(backend, lambda workspace: rolling.rolling(workspace, rounds=rounds, per_second=30, timing=SHORT))


def run_network(rounds: int, seed: int) -> bool:
    return run(
        Backend.POSTGRESQL,
        lambda workspace: network.network(
            workspace, rounds=rounds, seconds=5, per_second=10, timing=DEFAULT, seed=seed
        ),
    )


def run_hostile(backend: Backend, executions: int) -> bool:
    def block_that(how: str) -> Scenario:
        return lambda workspace: hostile.hostile(workspace, how=how, executions=executions, timing=SHORT)

    return run(backend, block_that("sleeps"), block_that("computes"), block_that("holds"))


def run_deadly(backend: Backend, executions: int) -> bool:
    def executions_that(how: str) -> Scenario:
        return lambda workspace: deadly.deadly(
            workspace, how=how, executions=executions, every=30, seconds=3, timing=SHORT
        )

    return run(backend, executions_that("kills"), executions_that("sleeps"), executions_that("holds"))


def exit_with(passed: bool) -> None:
    raise typer.Exit(not passed)


@app.command("kill")
def kill_command(executions: Count = 1000, database: On = Backend.POSTGRESQL, seed: Seed = 1) -> None:
    """Kill random API processes and workers with kill -9."""
    exit_with(run_kill(database, executions, seed))


@app.command("postgres")
def postgres_command(stops: Count = 5, seed: Seed = 1) -> None:
    """Stop PostgreSQL without a checkpoint, and start it again, under load."""
    exit_with(run_postgres(stops, seed))


@app.command("frozen")
def frozen_command(executions: Count = 40, database: On = Backend.POSTGRESQL) -> None:
    """Freeze a worker for longer than the heartbeat timeout, then continue it."""
    exit_with(run_frozen(database, executions))


@app.command("schedules")
def schedules_command(minutes: Count = 4, database: On = Backend.POSTGRESQL, seed: Seed = 1) -> None:
    """Fire schedules on two replicas while one of them is killed."""
    exit_with(run_schedules(database, minutes, seed))


@app.command("rolling")
def rolling_command(rounds: Count = 3, database: On = Backend.POSTGRESQL) -> None:
    """Restart all processes one after another under load."""
    exit_with(run_rolling(database, rounds))


@app.command("network")
def network_command(rounds: Count = 2, seed: Seed = 1) -> None:
    """Slow down, cut and silence the network to PostgreSQL."""
    exit_with(run_network(rounds, seed))


@app.command("hostile")
def hostile_command(executions: Count = 4, database: On = Backend.POSTGRESQL) -> None:
    """Run blocks that block the event loop or hold the interpreter lock."""
    exit_with(run_hostile(database, executions))


@app.command("deadly")
def deadly_command(executions: Count = 60, database: On = Backend.POSTGRESQL) -> None:
    """Run executions that kill or block their worker forever, together with healthy ones."""
    exit_with(run_deadly(database, executions))


@app.command("all")
def all_command(seed: Seed = 1) -> None:
    """Run all scenarios, on both databases where supported. Takes half an hour."""
    passed = [
        result
        for backend in Backend
        for result in (
            run_kill(backend, 1000, seed),
            run_rolling(backend, 3),
            run_frozen(backend, 40),
            run_schedules(backend, 4, seed),
            run_hostile(backend, 4),
            run_deadly(backend, 60),
        )
    ]
    exit_with(all([*passed, run_postgres(5, seed), run_network(2, seed)]))


app()
