"""`python -m benchmarks api`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.api import results, tables
from benchmarks.api.cores import reserve_server_core
from benchmarks.api.measurement import Measurement, Plan, measure
from benchmarks.api.requests import ENDPOINTS
from benchmarks.api.results import Results
from benchmarks.api.setup import Setup, describe_setup
from benchmarks.api.targets import CONCURRENCY, LONG, MEDIUM, MEMORY_REQUESTS, SHORT
from benchmarks.installation import POSTGRESQL, SQLITE, BenchmarkEnvironment, create_environment

HISTORIES = [SHORT, MEDIUM, LONG]
CONCURRENCIES = [1, CONCURRENCY, 64]
SIGNED_IN_ENDPOINTS = ("list", "stats")


class Database(StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    BOTH = "both"


KINDS = {Database.SQLITE: [SQLITE], Database.POSTGRESQL: [POSTGRESQL], Database.BOTH: [POSTGRESQL, SQLITE]}


class Auth(StrEnum):
    DEVELOPMENT = "development"
    JWT = "jwt"


DatabaseOption = Annotated[Database, typer.Option(help="The databases to measure.")]
HistoryOption = Annotated[
    list[int] | None, typer.Option(min=1, help=f"Executions of the flow; {HISTORIES} if not set.")
]
ConcurrencyOption = Annotated[list[int] | None, typer.Option(min=1, help=f"Connections; {CONCURRENCIES} if not set.")]
EndpointOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help=f"Of {', '.join(ENDPOINTS)}; all if not set.")
]
RoundsOption = Annotated[int, typer.Option(min=1, help="Rounds; the medians are shown.")]
SecondsOption = Annotated[float, typer.Option(min=0.05, help="Seconds of each server in each round.")]
AuthOption = Annotated[Auth, typer.Option(help="Sign in as the development user, or with a token (RS256).")]
MemoryOption = Annotated[
    int, typer.Option(min=0, help="Requests between two measurements of the memory; 0 measures none.")
]
SettingOption = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of BloxServer.")]
AddressOption = Annotated[
    bool, typer.Option("--one-address", help="Use one client address, not one for each connection.")
]
ProfileOption = Annotated[
    Path | None, typer.Option(help="Profile BloxServer with py-spy, to one file for each measured row.")
]
SaveOption = Annotated[
    Path | None,
    typer.Option(
        metavar="ROOT",
        help="Also measure memory and requests with a token, and write benchmarks/results, README.md and "
        "docs/performance.md of the repository at ROOT.",
    ),
]
SmallOption = Annotated[bool, typer.Option("--small", help="Only check that it runs; results are meaningless.")]


def api(
    database: DatabaseOption = Database.BOTH,
    history: HistoryOption = None,
    concurrency: ConcurrencyOption = None,
    endpoint: EndpointOption = None,
    rounds: RoundsOption = 3,
    seconds: SecondsOption = 2,
    auth: AuthOption = Auth.DEVELOPMENT,
    memory_requests: MemoryOption = 0,
    setting: SettingOption = None,
    one_address: AddressOption = False,
    profile: ProfileOption = None,
    save: SaveOption = None,
    small: SmallOption = False,
) -> None:
    """Measure the API against a bare server, and print one Markdown table for each database.

    BloxServer and the bare server run on one core; the load generator and a local PostgreSQL on the others.
    """
    if unknown := [name for name in endpoint or [] if name not in ENDPOINTS]:
        raise typer.BadParameter(f"unknown endpoint: {', '.join(unknown)}; the endpoints are {', '.join(ENDPOINTS)}")
    plan = Plan(
        histories=sorted(history or ([50] if small else HISTORIES)),
        concurrencies=concurrency or ([2] if small else CONCURRENCIES),
        endpoints=[value for name, value in ENDPOINTS.items() if endpoint is None or name in endpoint],
        rounds=1 if small else rounds,
        seconds=0.1 if small else seconds,
        with_token=auth is Auth.JWT,
        one_address=one_address,
        memory_requests=memory_requests or (0 if save is None else 50 if small else MEMORY_REQUESTS),
        profile=profile,
    )
    settings = dict(pair.split("=", 1) for pair in setting or [])
    setup = describe_setup(settings, plan.rounds, plan.seconds)
    core = reserve_server_core()
    with create_environment(KINDS[database], settings) as environment:
        asyncio.run(_measure(environment, plan, setup, core, save))


async def _measure(
    environment: BenchmarkEnvironment, plan: Plan, setup: Setup, core: int | None, save: Path | None
) -> None:
    for kind in environment.kinds:
        measured = await measure(environment, kind, plan, core)
        described = replace(setup, versions={kind: measured.database_version} | setup.versions)
        signed_in = Measurement()
        if save is not None and not plan.with_token:
            signed_in = await measure(environment, kind, _signed_in(plan), core)
        result = Results(described, measured.rows, measured.memory, tuple(signed_in.rows))
        if save is not None:
            results.store(save, {kind: result})
        typer.echo(f"{kind}: {described.line}\n\n{tables.format_rows(result.rows)}\n")


def _signed_in(plan: Plan) -> Plan:
    """Return the part of the plan that is repeated with a token: lists and statistics of the shortest history."""
    concurrencies = [CONCURRENCY] if CONCURRENCY in plan.concurrencies else plan.concurrencies[:1]
    endpoints = [endpoint for endpoint in plan.endpoints if endpoint.name in SIGNED_IN_ENDPOINTS]
    return replace(
        plan,
        histories=plan.histories[:1],
        concurrencies=concurrencies,
        endpoints=endpoints,
        with_token=True,
        memory_requests=0,
        profile=None,
    )
