"""Measures what the triggers that maintain totals of executions cost, by alternating with a database without them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from statistics import median
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from benchmarks.installation import BenchmarkEnvironment, Installation
from benchmarks.results import Result
from benchmarks.sizes import Sizes
from benchmarks.timings import read_timings, total_seconds
from benchmarks.workload import INPUT, accept_backlog, create_flows
from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.execution_totals import drop_triggers
from bloxserver.models.maintained import execute_statements
from bloxserver.models.tables import ExecutionRecord

TARGET = ">= 80 %"
GROUP = 100
EXECUTIONS: Any = ExecutionRecord.__table__
Write = Callable[[Installation, UUID, int], Awaitable[None]]


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Measure statements of one connection, each in its own transaction, and the throughput of one worker."""
    rates: dict[str, dict[bool, list[float]]] = {}
    async with _database(environment, kind, True) as counting, _database(environment, kind, False) as other:
        sides = {True: counting, False: other}
        flows = {side: (await create_flows(installation, 1))[0].id for side, installation in sides.items()}
        for _ in range(sizes.rounds + 1):
            for name, write in WRITES.items():
                for side, installation in sides.items():
                    start = time.perf_counter()
                    await write(installation, flows[side], sizes.totals)
                    rate = sizes.totals / (time.perf_counter() - start)
                    rates.setdefault(name, {}).setdefault(side, []).append(rate)
    for _ in range(sizes.rounds):
        for side in (True, False):
            async with _database(environment, kind, side) as installation:
                rate = await _throughput(installation, sizes)
            rates.setdefault("executions of three echo steps", {}).setdefault(side, []).append(rate)
    return [_result(kind, name, measured) for name, measured in rates.items()]


def _result(kind: str, name: str, rates: dict[bool, list[float]]) -> Result:
    counting, other = (median(rates[side]) for side in (True, False))
    value = f"{counting:.0f}/s, without triggers {other:.0f}/s: {counting / other:.0%}"
    return Result("totals", kind, name, value, TARGET)


@asynccontextmanager
async def _database(environment: BenchmarkEnvironment, kind: str, is_counting: bool) -> AsyncIterator[Installation]:
    async with environment.installation(kind) as installation:
        if not is_counting:
            async with installation.database.engine.begin() as connection:
                await connection.run_sync(execute_statements, drop_triggers)
        yield installation


async def _throughput(installation: Installation, sizes: Sizes) -> float:
    await accept_backlog(installation, await create_flows(installation, sizes.users), sizes.backlog)
    async with installation.workers() as processes:
        await installation.wait_for_end(processes)
    timings = await read_timings(installation)
    return len(timings) / total_seconds(timings)


async def _insert(installation: Installation, flow_id: UUID, count: int, *, group: int) -> None:
    for _ in range(0, count, group):
        rows = [
            {"id": new_id(), "flow_id": flow_id, "trigger_type": "manual", "started_at": now(), "input_payload": INPUT}
            for _ in range(group)
        ]
        async with installation.database.transaction() as session:
            await session.execute(sa.insert(EXECUTIONS).values(rows))


async def _insert_single(installation: Installation, flow_id: UUID, count: int) -> None:
    await _insert(installation, flow_id, count, group=1)


async def _insert_groups(installation: Installation, flow_id: UUID, count: int) -> None:
    await _insert(installation, flow_id, count, group=GROUP)


async def _update(installation: Installation, count: int, group: int, **values: Any) -> None:
    running = sa.select(EXECUTIONS.c.id).where(EXECUTIONS.c.status == "running").limit(count)
    async with installation.database.transaction(read_only=True) as session:
        ids = iter((await session.scalars(running)).all())
    for chosen in _groups(ids, group):
        async with installation.database.transaction() as session:
            await session.execute(sa.update(EXECUTIONS).where(EXECUTIONS.c.id.in_(chosen)).values(**values))


def _groups(ids: Iterator[UUID], size: int) -> Iterator[list[UUID]]:
    while chosen := list(islice(ids, size)):
        yield chosen


async def _claim(installation: Installation, flow_id: UUID, count: int) -> None:
    await _update(installation, count, 1, lease=new_id(), worker_id="w")


async def _end_single(installation: Installation, flow_id: UUID, count: int) -> None:
    await _update(installation, count, 1, status="success", duration_ms=10, lease=None, worker_id=None)


async def _end_groups(installation: Installation, flow_id: UUID, count: int) -> None:
    await _update(installation, count, GROUP, status="error", duration_ms=10, lease=None, worker_id=None)


WRITES: dict[str, Write] = {
    "inserts of one row": _insert_single,
    f"rows inserted by {GROUP}": _insert_groups,
    "claims of one row": _claim,
    "ends of one row": _end_single,
    f"rows ended by {GROUP}": _end_groups,
}
"""The order keeps enough running executions for each."""
