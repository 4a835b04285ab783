"""Measures BloxServer and the bare server in turns, round by round."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import typer

from benchmarks.api.agreement import require_agreement
from benchmarks.api.generator import Load
from benchmarks.api.history import History, fill
from benchmarks.api.requests import KEPT, OURS, Endpoint
from benchmarks.api.servers import (
    Server,
    SignIn,
    generate,
    profiling,
    server_of,
    serving_ceiling,
    serving_ours,
    signing_in,
)
from benchmarks.installation import BenchmarkEnvironment, Installation


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    histories: list[int]
    concurrencies: list[int]
    endpoints: list[Endpoint]
    rounds: int
    seconds: float
    with_token: bool = False
    one_address: bool = False
    profile: Path | None = None


@dataclass(frozen=True)
class Sample:
    """One variant in one round."""

    database: str
    history: int
    endpoint: str
    concurrency: int
    variant: str
    round: int
    rate: float
    """Requests per second."""
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """CPU time of the server per request."""
    database_cpu_ms: float | None
    """CPU time of PostgreSQL per request."""
    requests: int
    unanswered: int


@dataclass
class Target:
    """The servers of one database with one history."""

    installation: Installation
    history: History
    executions: int
    ours: Server
    ceiling: Server
    sign_in: SignIn
    keeps_totals: bool
    samples: list[Sample] = field(default_factory=list)


async def measure(environment: BenchmarkEnvironment, kind: str, plan: Plan, core: int | None) -> list[Sample]:
    """Measure all histories, each on a new database."""
    samples: list[Sample] = []
    for executions in plan.histories:
        async with prepared(environment, kind, executions, plan.with_token, core) as target:
            for endpoint in plan.endpoints:
                for concurrency in plan.concurrencies:
                    await _measure_endpoint(target, endpoint, concurrency, plan)
        samples += target.samples
    return samples


@asynccontextmanager
async def prepared(
    environment: BenchmarkEnvironment, kind: str, executions: int, with_token: bool, core: int | None
) -> AsyncIterator[Target]:
    """Start the servers on a new database, with a flow that has this number of executions."""
    async with signing_in(with_token) as sign_in, environment.installation(kind, migrate=False) as installation:
        async with serving_ours(installation, sign_in, None):
            pass  # migrates the database
        history = await fill(installation.url, executions, sign_in.subject)
        async with (
            serving_ours(installation, sign_in, core) as ours,
            serving_ceiling(installation, history, core) as ceiling,
        ):
            keeps_totals = await has_totals(installation)
            yield Target(installation, history, executions, ours, ceiling, sign_in, keeps_totals)


async def has_totals(installation: Installation) -> bool:
    """Whether the measured version of BloxServer keeps totals."""
    async with installation.database.engine.connect() as connection:
        return await connection.run_sync(lambda sync: sync.dialect.has_table(sync, "execution_totals"))


async def _measure_endpoint(target: Target, endpoint: Endpoint, concurrency: int, plan: Plan) -> None:
    variants = [variant for variant in endpoint.variants if target.keeps_totals or variant != KEPT]
    for number in range(plan.rounds):
        await require_agreement(endpoint, variants, target.ours, target.ceiling, target.history, target.sign_in.token)
        # Each variant is the first one in some round: the first one may find colder caches.
        for variant in variants[number % len(variants) :] + variants[: number % len(variants)]:
            sample = await _sample(target, endpoint, concurrency, variant, number, plan)
            target.samples.append(sample)
            typer.echo(
                f"{sample.database} {sample.history:,} {sample.endpoint} c={sample.concurrency} {sample.variant}:"
                f" {sample.rate:.0f}/s, p50 {sample.p50_ms:.1f} ms, p99 {sample.p99_ms:.1f} ms,"
                f" CPU {sample.cpu_ms:.2f} ms",
                err=True,
            )


async def _sample(
    target: Target, endpoint: Endpoint, concurrency: int, variant: str, number: int, plan: Plan
) -> Sample:
    server = server_of(variant, target.ours, target.ceiling)
    load = Load(
        port=server.port,
        connections=concurrency,
        seconds=plan.seconds,
        requests=[endpoint.request(variant, target.history, target.sign_in.token)],
        addresses=1 if plan.one_address else concurrency,
    )
    file = None
    if plan.profile is not None and variant == OURS:
        file = plan.profile.with_stem(f"{plan.profile.stem}-{endpoint.name}-{target.executions}-{concurrency}")
    cpu, database_cpu = server.cpu_seconds(), await target.installation.postgres_cpu_seconds()
    async with profiling(server, file, plan.seconds):
        measured = await generate(load)
    cpu = server.cpu_seconds() - cpu
    after = await target.installation.postgres_cpu_seconds()
    answered = max(1, measured.answered)
    return Sample(
        database=target.installation.kind,
        history=target.executions,
        endpoint=endpoint.name,
        concurrency=concurrency,
        variant=variant,
        round=number,
        rate=measured.rate,
        p50_ms=measured.p50_ms,
        p99_ms=measured.p99_ms,
        cpu_ms=cpu / answered * 1000,
        database_cpu_ms=None if database_cpu is None or after is None else (after - database_cpu) / answered * 1000,
        requests=measured.requests,
        unanswered=measured.unanswered,
    )
