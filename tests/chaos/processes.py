"""BloxServer's processes, started, frozen and killed for real."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx

from tests.chaos.waiting import until

START_SECONDS = 60


@dataclass(frozen=True)
class Timing:
    """How soon silence is noticed; in seconds."""

    heartbeat: float = 5
    dead_after: float = 20
    sweep: float = 2
    drain: float = 10

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HEARTBEAT_INTERVAL_SECONDS": str(self.heartbeat),
            "HEARTBEAT_TIMEOUT_SECONDS": str(self.dead_after),
            "POLL_INTERVAL_SECONDS": str(self.sweep),
            "SHUTDOWN_GRACE_SECONDS": str(self.drain),
        }


DEFAULT = Timing()
QUICK = Timing(heartbeat=0.3, dead_after=1.5, sweep=0.3, drain=0.5)


class Process:
    """One that can be started again after its end, with the same arguments."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = dict(environment)
        self._directory = directory
        self._log = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.is_ready = False
        self.ended_unasked = 0
        """How often it had ended before it was told to."""

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bloxserver", *self._arguments],
                env=self._environment,
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )

    async def until_ready(self) -> None:
        await until(f"{self.name} to be ready", self._has_become_ready, START_SECONDS)
        self.is_ready = True

    async def _has_become_ready(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"{self.name} ended while it started: {self.last_words()}")
        return b"worker ready" in self._log.read_bytes()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, number: signal.Signals, seconds: float = 60) -> int | None:
        """Send the signal and wait for the end; returns the exit status, None where it was not running."""
        self.is_ready = False
        if self._process is None:
            return None
        if not self.is_running:
            self.ended_unasked += 1
            return self._process.returncode
        self.send(number)
        process, self._process = self._process, None
        return await asyncio.to_thread(process.wait, seconds)

    async def kill(self) -> None:
        await self.end(signal.SIGKILL)

    async def restart(self) -> None:
        self.start()
        await self.until_ready()

    def last_words(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def complaints(self) -> list[str]:
        """Lines of its log, since its last start, that tell of errors."""
        return [line for line in self._log.read_text(errors="replace").splitlines() if "[error" in line]


class Replica(Process):
    """A process that serves the API, at an address that outlives it."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self.port = free_port()
        super().__init__(name, [*arguments, "--port", str(self.port)], environment, directory)
        self.url = f"http://127.0.0.1:{self.port}"
        self.under_way = 0
        """Requests that wait for its answer."""

    async def _has_become_ready(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"{self.name} ended while it started: {self.last_words()}")
        try:
            async with httpx.AsyncClient(timeout=5) as client:
                return (await client.get(f"{self.url}/health/ready")).status_code == 200
        except httpx.TransportError:
            return False


class Installation:
    """The processes of one BloxServer on one database; what still runs at the end is killed."""

    def __init__(
        self, database_url: str, directory: Path, timing: Timing, environment: Mapping[str, str] | None = None
    ) -> None:
        self.database_url = database_url
        self.uses_sqlite = database_url.startswith("sqlite")
        self.timing = timing
        self.started_at = time.monotonic()
        self._directory = directory
        self._environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._environment |= {"SSRF_ALLOW_CIDRS": "127.0.0.0/8", **timing.environment, **(environment or {})}
        self.replicas: list[Replica] = []
        self.workers: list[Process] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            await process.kill()

    @property
    def processes(self) -> list[Process]:
        return [*self.replicas, *self.workers]

    def add_replica(self, *, run_worker: bool, database_url: str | None = None) -> Replica:
        arguments = ["serve"] if run_worker else ["serve", "--no-worker"]
        name = f"api-{len(self.replicas) + 1}"
        replica = Replica(name, arguments, self._environment_with(database_url), self._directory)
        self.replicas.append(replica)
        return replica

    def add_worker(self, *, database_url: str | None = None) -> Process:
        name = f"worker-{len(self.workers) + 1}"
        worker = Process(name, ["worker"], self._environment_with(database_url), self._directory)
        self.workers.append(worker)
        return worker

    def _environment_with(self, database_url: str | None) -> dict[str, str]:
        return self._environment | {"DATABASE_URL": database_url or self.database_url}

    async def start(self) -> None:
        """Start what does not run, and wait until all is ready."""
        for process in self.processes:
            if not process.is_running:
                process.start()
        await asyncio.gather(*(process.until_ready() for process in self.processes))

    async def start_usual(self, replicas: int, workers: int) -> None:
        """So many of each on PostgreSQL; on SQLite the one process that there can be."""
        for _ in range(1 if self.uses_sqlite else replicas):
            self.add_replica(run_worker=self.uses_sqlite)
        for _ in range(0 if self.uses_sqlite else workers):
            self.add_worker()
        await self.start()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
