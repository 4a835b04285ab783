"""Measures clients that wait for the end of executions with `?wait` and event streams."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa

from benchmarks.cpu_time import difference
from benchmarks.installation import SQLITE, BenchmarkEnvironment, Installation
from benchmarks.processes import Process
from benchmarks.results import Result, summarize
from benchmarks.sizes import Sizes
from benchmarks.workload import THREE_ECHOES, Flow, accept_backlog, create_flows
from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.enums import FlowStatus
from bloxserver.models.tables import ExecutionRecord, FlowRecord, UserRecord

TARGET_CPU = "< 5 % of a core"
TARGET_LATENCY = "p95 <= 50 ms"
WAIT_SECONDS = 60
DELAY = """\
organism: {{name: delayed}}
listeners:
  - {{name: pause, description: Waits., handler: delay, config: {{seconds: {seconds}}}, peers: [last]}}
  - {{name: last, description: The last step., handler: echo}}
"""
LIMITS = {"MAX_CONNECTIONS": "5000", "MAX_CONNECTIONS_PER_ADDRESS": "5000"}


@dataclass
class Server:
    """The process whose clients wait, and the process that runs executions."""

    process: Process
    client: httpx.AsyncClient
    runner: httpx.AsyncClient


@dataclass
class Flows:
    idle: Sequence[Flow]
    """Each belongs to another user. Their executions do not end."""
    idle_streams: UUID
    ending: UUID
    ending_soon: UUID
    unrelated: Sequence[Flow]


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Measure with the worker in the process whose clients wait and, on PostgreSQL, on another replica."""
    results = await _measure(environment, kind, sizes, separate=False)
    if kind != SQLITE:
        results += await _measure(environment, kind, sizes, separate=True)
    return results


async def _measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes, *, separate: bool) -> list[Result]:
    where = "worker on another replica" if separate else "worker in the API process"
    results: list[Result] = []

    def add(measured: str, value: str, target: str = "") -> None:
        results.append(Result("waiters", kind, f"{measured}, {where}", value, target))

    async with environment.installation(kind) as installation, _start(installation, separate=separate) as server:
        flows = await _create_flows(installation, server, sizes)
        add("idle process", await _cpu_share(server.process, sizes.idle_seconds))
        started = time.monotonic()
        async with _waiting(installation, server, flows, sizes.waiters):
            number = f"{sizes.waiters} waits and {sizes.waiters} streams"
            add(f"{number}, idle", await _cpu_share(server.process, sizes.idle_seconds), TARGET_CPU)
            _require_in_time(started)
            waits, streams = await _ends(server, flows, sizes.ends)
            add(f"{number}: end to `?wait`", summarize(waits), TARGET_LATENCY)
            add(f"{number}: end to event stream", summarize(streams), TARGET_LATENCY)
            await accept_backlog(installation, flows.unrelated, sizes.unrelated)
            load = asyncio.create_task(_wait_until_none(installation, flows.unrelated))
            share = asyncio.create_task(_cpu_share(server.process, load))
            waits, streams = await _ends(server, flows, sizes.ends, load)
            ended_per_second = sizes.unrelated / await load
            add(f"{number}, {ended_per_second:.0f} unrelated executions/s", await share)
            add(f"{number}, with unrelated executions: end to `?wait`", summarize(waits))
            add(f"{number}, with unrelated executions: end to event stream", summarize(streams))
    return results


@asynccontextmanager
async def _start(installation: Installation, *, separate: bool) -> AsyncIterator[Server]:
    async with AsyncExitStack() as stack:
        arguments = ["--no-worker"] if separate else []
        process, client = await stack.enter_async_context(installation.serve(*arguments, settings=LIMITS))
        runner = client
        if separate:
            _, runner = await stack.enter_async_context(installation.serve(settings=LIMITS))
        await installation.wait_for_workers(1)
        yield Server(process, client, runner)


async def _create_flows(installation: Installation, server: Server, sizes: Sizes) -> Flows:
    """Create the flows of the development user, whose number of streams is not limited, and those of other users."""
    (await server.client.get("/api/v1/me")).raise_for_status()
    ids = [new_id() for _ in range(3)]
    organisms = (DELAY.format(seconds=3600), THREE_ECHOES, DELAY.format(seconds=0.3))
    async with installation.database.transaction() as session:
        user_id = (await session.scalars(sa.select(UserRecord.id))).one()
        await session.execute(sa.update(UserRecord).values(limits={"streams": 100_000}))
        for id, organism in zip(ids, organisms, strict=True):
            flow = {"id": id, "user_id": user_id, "name": "measured", "status": FlowStatus.RUNNING}
            await session.execute(sa.insert(FlowRecord), [flow | {"organism_yaml": organism}])
    idle = await create_flows(installation, sizes.users, organisms[0])
    unrelated = await create_flows(installation, sizes.users)
    return Flows(idle, ids[0], ids[1], ids[2], unrelated)


@asynccontextmanager
async def _waiting(installation: Installation, server: Server, flows: Flows, number: int) -> AsyncIterator[None]:
    """Keep this number of `?wait` requests and of event streams open; yields when their executions are idle."""
    streamed = [Flow(flows.idle_streams, "")]
    await accept_backlog(installation, streamed, number, resume_at=now() + timedelta(days=1))
    async with installation.database.transaction(read_only=True) as session:
        rows = await session.scalars(sa.select(ExecutionRecord.id).where(ExecutionRecord.flow_id == flows.idle_streams))
        paths = [f"/api/v1/flows/{flows.idle_streams}/executions/{id}/events" for id in rows]
    host = server.client.base_url.host, server.client.base_url.port or 80
    tokens = [flows.idle[index % len(flows.idle)].webhook_token for index in range(number)]
    opened: list[asyncio.Task[None]] = []
    try:
        for path, token in zip(paths, tokens, strict=True):
            opened.append(asyncio.create_task(_stay(host, f"GET {path}")))
            opened.append(asyncio.create_task(_stay(host, f"POST /webhooks/{token}?wait={WAIT_SECONDS}")))
            await asyncio.sleep(0.002)
        await _wait_until_idle(installation, flows, number)
        if failed := [task for task in opened if task.done()]:
            raise RuntimeError(f"{len(failed)} of {len(opened)} connections ended: {failed[0].exception()}")
        yield
    finally:
        for task in opened:
            task.cancel()
        await asyncio.gather(*opened, return_exceptions=True)


async def _stay(host: tuple[str, int], request: str) -> None:
    """Send the request and read its response, again and again."""
    while True:
        reader, writer = await asyncio.open_connection(*host)
        try:
            writer.write(f"{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            line = await reader.readline()
            if not line.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
                raise RuntimeError(f"{request}: {line.decode()}")
            with suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n0\r\n\r\n" if request.startswith("GET") else b"}")
        finally:
            writer.transport.abort()


async def _ends(
    server: Server, flows: Flows, number: int, until: asyncio.Task[float] | None = None
) -> tuple[list[float], list[float]]:
    """Milliseconds from the end of executions to its reception by `?wait` requests and by event streams."""
    waits: list[float] = []
    streams: list[float] = []
    for _ in range(number):
        if until is not None and until.done() and waits:
            break
        url = f"/api/v1/flows/{flows.ending}/executions/run"
        body = (await server.client.post(url, params={"wait": "30"})).raise_for_status()
        waits.append(_ms_since(body.json()))
        url = f"/api/v1/flows/{flows.ending_soon}/executions"
        execution_id = (await server.runner.post(f"{url}/run")).raise_for_status().json()["id"]
        last = ""
        async with server.client.stream("GET", f"{url}/{execution_id}/events") as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                received = time.time()
                last = line if line.startswith("data:") else last
        streams.append(_ms_since(json.loads(last.removeprefix("data:")), received))
    return waits, streams


def _require_in_time(started: float) -> None:
    if time.monotonic() - started > WAIT_SECONDS:
        raise RuntimeError(f"the waits elapsed before they were measured: the machine is too slow for {WAIT_SECONDS} s")


def _ms_since(execution: dict[str, Any], received: float | None = None) -> float:
    received = received or time.time()
    if execution["status"] != "success":
        raise RuntimeError(f"an execution did not succeed: {execution}")
    return (received - datetime.fromisoformat(execution["completedAt"]).timestamp()) * 1000


async def _cpu_share(process: Process, until: float | asyncio.Task[float]) -> str:
    """CPU of the process during these seconds, or until the task ends."""
    started, used = time.monotonic(), process.cpu_seconds()
    await (asyncio.sleep(until) if isinstance(until, float | int) else asyncio.wait([until]))
    cpu = difference(used, process.cpu_seconds())
    return "?" if cpu is None else f"{cpu / (time.monotonic() - started):.1%} of a core"


async def _wait_until_none(installation: Installation, flows: Sequence[Flow]) -> float:
    """Wait until all executions of these flows have ended. Returns the seconds."""
    started = time.monotonic()
    ids = [flow.id for flow in flows]
    wanted = sa.select(sa.func.count()).where(ExecutionRecord.flow_id.in_(ids), ExecutionRecord.status == "running")
    await _poll(installation, wanted, lambda count: count == 0)
    return time.monotonic() - started


async def _wait_until_idle(installation: Installation, flows: Flows, number: int) -> None:
    """Wait until this number of executions of the idle flows waits in its `delay`."""
    ids = [flow.id for flow in flows.idle]
    wanted = sa.select(sa.func.count()).where(
        ExecutionRecord.flow_id.in_(ids), ExecutionRecord.lease.is_(None), ExecutionRecord.resume_at.is_not(None)
    )
    await _poll(installation, wanted, lambda count: count >= number)
    await asyncio.sleep(1)


async def _poll(installation: Installation, wanted: sa.Select[int], is_reached: Callable[[int], bool]) -> None:
    async with asyncio.timeout(300):
        while True:
            async with installation.database.transaction(read_only=True) as session:
                if is_reached((await session.execute(wanted)).scalar_one()):
                    return
            await asyncio.sleep(0.2)
