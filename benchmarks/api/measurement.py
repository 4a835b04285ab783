"""Measures BloxServer and the bare server in turns, round by round."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
import typer

from benchmarks.api.agreement import read_total, recover, require_agreement
from benchmarks.api.generator import Load
from benchmarks.api.history import History, fill
from benchmarks.api.memory_growth import MemoryGrowth, measure_memory
from benchmarks.api.requests import KEPT, OURS, Endpoint
from benchmarks.api.samples import Row, Sample, summarize
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
from benchmarks.api.setup import read_database_version
from benchmarks.installation import BenchmarkEnvironment, Installation

SLOW_SECONDS = 15
"""A bare server that needs this much longer than a round is not measured in the other rounds."""


@dataclass(frozen=True)
class Plan:
    """What is measured on each database."""

    histories: list[int]
    concurrencies: list[int]
    endpoints: list[Endpoint]
    rounds: int
    seconds: float
    with_token: bool = False
    one_address: bool = False
    memory_requests: int = 0
    """Requests between two measurements of the memory, with the shortest history."""
    profile: Path | None = None


@dataclass
class Measurement:
    database_version: str = ""
    rows: list[Row] = field(default_factory=list)
    memory: MemoryGrowth | None = None


@dataclass(frozen=True)
class Target:
    """The servers of one database with one history."""

    installation: Installation
    history: History
    executions: int
    ours: Server
    ceiling: Server
    sign_in: SignIn
    keeps_totals: bool


async def measure(environment: BenchmarkEnvironment, kind: str, plan: Plan, core: int | None) -> Measurement:
    """Measure all histories, each on a new database."""
    measurement = Measurement()
    for executions in plan.histories:
        shortest = executions == min(plan.histories)
        samples: list[Sample] = []
        async with prepared(environment, kind, executions, plan.with_token, core) as target:
            measurement.database_version = await read_database_version(target.installation)
            for endpoint in plan.endpoints:
                if endpoint.reads_history or shortest:
                    for concurrency in plan.concurrencies:
                        samples += await _measure_endpoint(target, endpoint, concurrency, plan)
            if plan.memory_requests and shortest:
                measurement.memory = await measure_memory(
                    target.ours, target.history, target.sign_in.token, plan.memory_requests
                )
        measurement.rows += summarize(samples)
    return measurement


@asynccontextmanager
async def prepared(
    environment: BenchmarkEnvironment, kind: str, executions: int, with_token: bool, core: int | None
) -> AsyncIterator[Target]:
    """Start the servers on a new database, with a flow that has this number of executions."""
    async with signing_in(with_token) as sign_in, environment.installation(kind, migrate=False) as installation:
        async with serving_ours(installation, sign_in, None):
            pass  # migrates the database
        typer.echo(f"{kind}: inserting {executions:,} executions …", err=True)
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
        return await connection.run_sync(lambda sync: sa.inspect(sync).has_table("execution_totals"))


async def _measure_endpoint(target: Target, endpoint: Endpoint, concurrency: int, plan: Plan) -> list[Sample]:
    variants = [variant for variant in endpoint.variants if target.keeps_totals or variant != KEPT]
    samples: list[Sample] = []
    token = target.sign_in.token
    total = await read_total(target.ours, target.history, token)
    compared = 0
    for number in range(plan.rounds):
        await require_agreement(endpoint, variants, target.ours, target.ceiling, target.history, token)
        compared += len(variants)
        # Each variant is the first one in some round: the first one may find colder caches.
        begin = number % len(variants)
        for variant in variants[begin:] + variants[:begin]:
            moment = time.monotonic()
            sample = await _sample(target, endpoint, concurrency, variant, number, plan)
            typer.echo(f"{target.installation.kind}: {_line(sample)}", err=True)
            samples.append(sample)
            if variant != OURS and time.monotonic() - moment > plan.seconds + SLOW_SECONDS:
                variants = [other for other in variants if other != variant]
    inserted = await read_total(target.ours, target.history, token) - total
    expected = sum(sample.answered for sample in samples) + compared if endpoint.writes else 0
    if inserted != expected and not any(sample.failed for sample in samples):
        raise RuntimeError(f"{endpoint.name}: {inserted} executions were inserted instead of {expected}")
    return samples


def _line(sample: Sample) -> str:
    failed = f", {sample.failed} failed" if sample.failed else ""
    return (
        f"{sample.endpoint}, {sample.history:,} executions, c={sample.concurrency}, {sample.variant}:"
        f" {sample.rate:.0f}/s, p50 {sample.p50_ms:.1f} ms, p99 {sample.p99_ms:.1f} ms,"
        f" CPU {sample.cpu_ms:.2f} ms{failed}"
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
    before = server.cpu_seconds(), await target.installation.postgres_cpu_seconds()
    async with profiling(server, file, plan.seconds):
        measured = await generate(load)
    if measured.failures or measured.unanswered:
        await recover(server, endpoint.request(variant, target.history, target.sign_in.token))
    after = server.cpu_seconds(), await target.installation.postgres_cpu_seconds()
    answered = max(1, measured.answered)
    has_database = before[1] is not None and after[1] is not None
    return Sample(
        history=target.executions,
        endpoint=endpoint.name,
        concurrency=concurrency,
        variant=variant,
        round=number,
        rate=measured.rate,
        p50_ms=measured.p50_ms,
        p99_ms=measured.p99_ms,
        cpu_ms=(after[0] - before[0]) / answered * 1000,
        database_cpu_ms=((after[1] or 0) - (before[1] or 0)) / answered * 1000 if has_database else None,
        answered=measured.answered,
        failed=sum(measured.failures.values()) + measured.unanswered,
    )
