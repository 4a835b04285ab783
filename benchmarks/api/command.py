"""`python -m benchmarks api`."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.api.cores import reserve_server_core
from benchmarks.api.measurement import Plan, Sample, measure
from benchmarks.api.requests import ENDPOINTS
from benchmarks.api.table import format_samples
from benchmarks.installation import POSTGRESQL, SQLITE, BenchmarkEnvironment, create_environment

HISTORIES = [1_000, 100_000, 1_000_000]
CONCURRENCIES = [1, 16, 64]


class Database(StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    BOTH = "both"


KINDS = {Database.SQLITE: [SQLITE], Database.POSTGRESQL: [POSTGRESQL], Database.BOTH: [POSTGRESQL, SQLITE]}


class Auth(StrEnum):
    DEVELOPMENT = "development"
    JWT = "jwt"


def api(
    database: Annotated[Database, typer.Option(help="The databases to measure.")] = Database.BOTH,
    history: Annotated[
        list[int] | None, typer.Option(min=1, help=f"Executions of the flow; {HISTORIES} if not set.")
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help=f"Connections; {CONCURRENCIES} if not set.")
    ] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Of {', '.join(ENDPOINTS)}; all if not set.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the medians are shown.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.05, help="Seconds of each variant in each round.")] = 3,
    auth: Annotated[Auth, typer.Option(help="Sign in as the development user, or with a token (RS256).")] = (
        Auth.DEVELOPMENT
    ),
    setting: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of BloxServer.")] = None,
    one_address: Annotated[
        bool, typer.Option(help="Send all requests from one client address, not one for each connection.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(help="Profile BloxServer with py-spy; one file per endpoint, history and concurrency."),
    ] = None,
) -> None:
    """Measure the API against a bare server, and print one Markdown table.

    BloxServer and the bare server run on one core; the load generator and a local PostgreSQL on the others.
    """
    if unknown := [name for name in endpoint or [] if name not in ENDPOINTS]:
        raise typer.BadParameter(f"unknown endpoint: {', '.join(unknown)}; the endpoints are {', '.join(ENDPOINTS)}")
    plan = Plan(
        histories=history or HISTORIES,
        concurrencies=concurrency or CONCURRENCIES,
        endpoints=[value for name, value in ENDPOINTS.items() if endpoint is None or name in endpoint],
        rounds=rounds,
        seconds=seconds,
        with_token=auth is Auth.JWT,
        one_address=one_address,
        profile=profile,
    )
    core = reserve_server_core()
    settings = dict(pair.split("=", 1) for pair in setting or [])
    with create_environment(KINDS[database], settings) as environment:
        samples = asyncio.run(_measure(environment, plan, core))
    typer.echo(format_samples(samples))


async def _measure(environment: BenchmarkEnvironment, plan: Plan, core: int | None) -> list[Sample]:
    samples: list[Sample] = []
    for kind in environment.kinds:
        samples += await measure(environment, kind, plan, core)
    return samples
