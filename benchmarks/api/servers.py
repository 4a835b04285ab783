"""The processes of a measurement: BloxServer, the bare server, and the load generator."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks import cpu_time
from benchmarks.api.cores import pin
from benchmarks.api.generator import Load, Measured
from benchmarks.api.history import History
from benchmarks.api.requests import OURS
from benchmarks.installation import Installation
from benchmarks.processes import INHERITED_VARIABLES, READY_SECONDS, free_port
from tests.jwks_server import JwksServer, SigningKey, claims

ROOT = Path(__file__).parents[2]
PROFILER_VARIABLE = "BENCHMARK_PY_SPY"
"""Names the program py-spy; by default it is searched in PATH."""
PROFILER_HERTZ = 500
TOKEN_SECONDS = 24 * 3600
DEVELOPMENT_USER = "dev_user_001"


@dataclass(frozen=True)
class Server:
    pid: int
    port: int

    def cpu_seconds(self) -> float:
        return cpu_time.process_seconds(self.pid) or 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class SignIn:
    """How requests sign in: as the development user, or with a token of an issuer on loopback."""

    subject: str = DEVELOPMENT_USER
    issuer: str | None = None
    token: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        return {} if self.issuer is None else {"CLERK_ISSUER": self.issuer}


@asynccontextmanager
async def signing_in(with_token: bool) -> AsyncIterator[SignIn]:
    """Serve the keys of the issuer during the block, and sign one token with RS256."""
    if not with_token:
        yield SignIn()
        return
    key = SigningKey()
    async with JwksServer(key) as server:
        subject = "user_benchmark"
        token = key.sign(claims(server.issuer, sub=subject, exp=int(time.time()) + TOKEN_SECONDS))
        yield SignIn(subject, server.issuer, token)


@asynccontextmanager
async def serving_ours(installation: Installation, sign_in: SignIn, core: int | None) -> AsyncIterator[Server]:
    """Run `bloxserver serve --no-worker`, which migrates the database."""
    async with installation.serve("--no-worker", settings=sign_in.settings) as (process, client):
        pin(process.pid, core)
        yield Server(process.pid, client.base_url.port or 0)


@asynccontextmanager
async def serving_ceiling(installation: Installation, history: History, core: int | None) -> AsyncIterator[Server]:
    """Run the bare server."""
    port = free_port()
    environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    log = installation.directory / "ceiling.log"
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.api.ceiling", str(port)),
            *(str(history.user_id), str(history.flow_id)),
            env=environment | {"DATABASE_URL": installation.url},
            cwd=ROOT,
            stdout=file,
            stderr=file,
        )
    server = Server(process.pid, port)
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not await _answers(server):
                if process.returncode is not None:
                    raise RuntimeError(log.read_text(encoding="utf-8")[-2000:])
                await asyncio.sleep(0.1)
        pin(process.pid, core)
        yield server
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(server: Server) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{server.url}/floor")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def generate(load: Load) -> Measured:
    """Run the load generator on the cores of this process.

    An overloaded server may answer 5xx or not at all. Raises `RuntimeError` for any other status than 200 and 5xx.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.api.generator"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(json.dumps(asdict(load)).encode())
    if process.returncode:
        raise RuntimeError(f"the load generator exited with {process.returncode}")
    measured = Measured(**json.loads(output))
    if any(not status.startswith("5") for status in measured.failures):
        raise RuntimeError(f"requests were rejected: {measured.statuses}\n{measured.body}")
    return measured


@asynccontextmanager
async def profiling(server: Server, file: Path | None, seconds: float) -> AsyncIterator[None]:
    """Sample the server with py-spy, and write the stacks to the file in its raw format."""
    if file is None:
        yield
        return
    profiler = await asyncio.create_subprocess_exec(
        os.environ.get(PROFILER_VARIABLE, "py-spy"),
        *("record", "--pid", str(server.pid), "--duration", str(max(1, round(seconds))), "--format", "raw"),
        *("--rate", str(PROFILER_HERTZ), "--output", str(file), "--nonblocking"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    yield
    if await profiler.wait():
        raise RuntimeError("py-spy failed")


def server_of(variant: str, ours: Server, ceiling: Server) -> Server:
    return ours if variant == OURS else ceiling
