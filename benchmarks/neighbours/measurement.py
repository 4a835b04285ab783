"""Runs one case against a new installation and measures the victim."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from benchmarks.installation import BenchmarkEnvironment, Installation
from benchmarks.neighbours.cases.case import Case
from benchmarks.neighbours.connections import Client
from benchmarks.neighbours.history import insert_history
from benchmarks.neighbours.memory import PeakMemory
from benchmarks.neighbours.names import silent_name_server
from benchmarks.neighbours.victim import MEASURING, Pace, Samples, Victim
from benchmarks.processes import Process, free_port, running, serving
from benchmarks.workload import THREE_ECHOES
from tests.jwks_server import JwksServer, SigningKey, claims

WARM_UP_SECONDS = 1
OPEN_FILES = 1024
ATTACKER_SECONDS = 180
"""The attacker's process is killed after this time. It includes the setup."""
KILLED = b'{"outcomes": {"attacker was killed": 1}, "messages": {}, "flow": ""}'
MEMORY_INTERVAL = 0.1
MAX_MESSAGES = 40
Attacker = asyncio.subprocess.Process
SETTINGS = {
    "ENV": "test",
    "SSRF_ALLOW_CIDRS": "127.0.0.0/8",
    "SHUTDOWN_GRACE_SECONDS": "0",
    "API_KEY_ENCRYPTION_KEY": "bmVpZ2hib3VycyBuZWlnaGJvdXJzIG5laWdoYm91cnM=",
}


@dataclass
class Outcome:
    """What the victim and the attacker saw."""

    case: Case
    database: str
    samples: Samples
    peak_memory: int
    exited: int
    """Processes of the server that ended during the case."""
    recovered: str
    outcomes: Counter[str] = field(default_factory=Counter)
    """The attacker's responses by status and code, and the ends of the attacker's executions."""
    messages: Counter[str] = field(default_factory=Counter)


@dataclass
class Server:
    processes: list[Process]
    url: str
    probed: list[Client]
    """Clients for the health endpoints of all processes."""


async def measure_case(
    environment: BenchmarkEnvironment, kind: str, case: Case, seconds: float, pace: Pace = MEASURING
) -> Outcome:
    """Attack for some seconds, and measure the victim until some seconds after the attack."""
    _limit_open_files()
    key = SigningKey()
    async with JwksServer(key) as issuer, environment.installation(kind, migrate=False) as installation:
        tokens = [
            key.sign(claims(issuer.issuer, sub=name, exp=int(time.time()) + 3600)) for name in ("victim", "attacker")
        ]
        settings = {"CLERK_ISSUER": issuer.issuer, "RATE_LIMITS": str(case.rate_limits).lower()}
        async with AsyncExitStack() as stack:
            if case.silent_names:
                settings |= await stack.enter_async_context(silent_name_server(installation.directory))
            server = await stack.enter_async_context(_server(installation, SETTINGS | settings))
            victim_client, attacker_client = (Client(server.url, token) for token in tokens)
            flow_id, webhook_token = await create_flow(victim_client, "victim", THREE_ECHOES)
            victim = Victim(victim_client, server.probed, flow_id, webhook_token, pace)
            token = None
            if case.executions:
                _, token = await create_flow(attacker_client, "attack", case.organism)
                await insert_history(installation, case.executions, case.steps)
            memory = PeakMemory(process.pid for process in server.processes)
            await victim.warm_up()
            instructions = {"case": case.name, "seconds": seconds, "url": server.url, "token": tokens[1]}
            attacker = await stack.enter_async_context(_attacker())
            report = await _attacked(victim, memory, attacker, instructions | {"webhook_token": token})
            await asyncio.sleep(pace.recovery_seconds)
            outcome = Outcome(
                case,
                kind,
                victim.samples,
                memory.highest,
                sum(process.exited for process in server.processes),
                await victim.recovery(),
                Counter(report["outcomes"]),
                Counter(report["messages"]),
            )
            await _read_executions(attacker_client, report["flow"], outcome)
            memory.kill_all()
    return outcome


def _limit_open_files() -> None:
    """Start processes with the limit of open files that services have by default, whatever the limit of this shell."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, OPEN_FILES), limit))


async def create_flow(client: Client, name: str, organism: str) -> tuple[str, str]:
    """Create a flow with a webhook, and start it. Returns its id and the token of the webhook."""
    body = json.dumps({"name": name, "organismYaml": organism}).encode()
    flow_id = (await client.request("POST", "/api/v1/flows", body)).json()["id"]
    path = f"/api/v1/flows/{flow_id}"
    trigger = b'{"type": "webhook", "name": "hook", "config": {}}'
    token = (await client.request("POST", f"{path}/triggers", trigger)).json()["webhookToken"]
    await client.request("POST", f"{path}/start")
    async with asyncio.timeout(60):
        while (await client.request("GET", path)).json()["status"] == "starting":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return flow_id, token


@asynccontextmanager
async def _attacker() -> AsyncIterator[Attacker]:
    """Run the process of the attacker, which waits for its instructions."""
    attacker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.neighbours.attacker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield attacker
    finally:
        with suppress(ProcessLookupError):
            attacker.kill()
        await attacker.communicate()


async def _attacked(
    victim: Victim, memory: PeakMemory, attacker: Attacker, instructions: dict[str, Any]
) -> dict[str, Any]:
    """Attack while the victim sends requests. Returns the report of the attacker."""
    to_attacker, from_attacker = cast(StreamWriter, attacker.stdin), cast(StreamReader, attacker.stdout)
    to_attacker.write(json.dumps(instructions).encode() + b"\n")
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(victim.run_until(ended))
        sampling = group.create_task(_sample(memory))
        try:
            async with asyncio.timeout(ATTACKER_SECONDS):
                output = await from_attacker.readline()
        except TimeoutError:
            output = b""
        ended.set()
        await asyncio.sleep(0.5)
        sampling.cancel()
    memory.sample()
    report: dict[str, Any] = json.loads(output or KILLED)
    return report


async def _sample(memory: PeakMemory) -> None:
    while True:
        memory.sample()
        await asyncio.sleep(MEMORY_INTERVAL)


async def _read_executions(client: Client, flow: str, outcome: Outcome) -> None:
    """Count the ends of the attacker's executions and their messages."""
    try:
        async with asyncio.timeout(20):
            for status in ("running", "success", "error", "timeout", "cancelled"):
                path = f"{flow}/executions?page_size={MAX_MESSAGES}&status_filter={status}"
                page = await client.request("GET", path)
                if page.status != 200:
                    return
                if total := page.json()["total"]:
                    outcome.outcomes[f"execution {status}"] = total
                for item in page.json()["items"] if status in ("error", "timeout", "cancelled") else ():
                    execution = (await client.request("GET", f"{flow}/executions/{item['id']}")).json()
                    outcome.messages[f"{status}: {execution['errorMessage']}"[:300]] += 1
    except (OSError, TimeoutError) as error:
        outcome.outcomes[f"executions not readable: {type(error).__name__}"] += 1


@asynccontextmanager
async def _server(installation: Installation, settings: dict[str, str]) -> AsyncIterator[Server]:
    """Run one process on SQLite; an API and two workers on PostgreSQL."""
    async with AsyncExitStack() as stack:
        environment = {"DATABASE_URL": installation.url} | settings | dict(installation.settings)
        arguments = [] if installation.is_sqlite else ["--no-worker"]
        process, client = await stack.enter_async_context(serving(installation.directory, environment, *arguments))
        url = str(client.base_url).rstrip("/")
        processes, probed = [process], [Client(url)]
        for _ in range(0 if installation.is_sqlite else 2):
            port = free_port()
            worker = running(installation.directory, environment | {"WORKER_PORT": str(port)}, "worker")
            processes.append(await stack.enter_async_context(worker))
            probed.append(Client(f"http://127.0.0.1:{port}"))
        if not installation.is_sqlite:
            await installation.wait_for_workers(2)
        try:
            yield Server(processes, url, probed)
        finally:
            for process in processes:
                process.kill()
