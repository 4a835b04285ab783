"""Processes of BloxServer that scenarios start, freeze and kill."""

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

from tests.chaos.waiting import wait_until

START_SECONDS = 60


@dataclass(frozen=True)
class Timing:
    """Intervals and timeouts of the processes, in seconds."""

    heartbeat: float = 5
    heartbeat_timeout: float = 20
    poll_interval: float = 2
    shutdown_grace: float = 10

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HEARTBEAT_INTERVAL_SECONDS": str(self.heartbeat),
            "HEARTBEAT_TIMEOUT_SECONDS": str(self.heartbeat_timeout),
            "POLL_INTERVAL_SECONDS": str(self.poll_interval),
            "SHUTDOWN_GRACE_SECONDS": str(self.shutdown_grace),
        }


DEFAULT = Timing()
QUICK = Timing(heartbeat=0.3, heartbeat_timeout=1.5, poll_interval=0.3, shutdown_grace=0.5)


class Process:
    """A process that can be restarted with the same arguments."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = dict(environment)
        self._directory = directory
        self._log = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.is_ready = False
        self.unexpected_exits = 0
        """How often the process had exited before a signal was sent."""

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
        await wait_until(f"{self.name} to be ready", self._has_become_ready, START_SECONDS)
        self.is_ready = True

    async def _has_become_ready(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"{self.name} exited during startup: {self.read_log_end()}")
        return b"worker ready" in self._log.read_bytes()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, number: signal.Signals, seconds: float = 60) -> int | None:
        """Send the signal and wait for the exit. Returns the exit status; None if the process was not started."""
        self.is_ready = False
        if self._process is None:
            return None
        if not self.is_running:
            self.unexpected_exits += 1
            return self._process.returncode
        self.send(number)
        process, self._process = self._process, None
        return await asyncio.to_thread(process.wait, seconds)

    async def kill(self) -> None:
        await self.end(signal.SIGKILL)

    async def restart(self) -> None:
        self.start()
        await self.until_ready()

    def read_log_end(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def logged_errors(self) -> list[str]:
        """Return the lines with errors in the log since the last start."""
        return [line for line in self._log.read_text(errors="replace").splitlines() if "[error" in line]


class Replica(Process):
    """A process that serves the API. Its address stays the same after a restart."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self.port = free_port()
        super().__init__(name, [*arguments, "--port", str(self.port)], environment, directory)
        self.url = f"http://127.0.0.1:{self.port}"
        self.open_requests = 0
        """Requests without a response so far."""

    async def _has_become_ready(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"{self.name} exited during startup: {self.read_log_end()}")
        try:
            async with httpx.AsyncClient(timeout=5) as client:
                return (await client.get(f"{self.url}/health/ready")).status_code == 200
        except httpx.TransportError:
            return False


class Installation:
    """The processes of an installation with one database. They are killed at the end."""

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
        """Start the processes that are not running, and wait until all are ready."""
        for process in self.processes:
            if not process.is_running:
                process.start()
        await asyncio.gather(*(process.until_ready() for process in self.processes))

    async def start_default(self, replicas: int, workers: int) -> None:
        """Start this many processes of each kind; on SQLite, one process."""
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
