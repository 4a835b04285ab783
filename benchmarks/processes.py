"""Processes of BloxServer, started by its command line."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from benchmarks import cpu_time

READY_SECONDS = 60
READY_POLL_SECONDS = 0.01
STOP_SECONDS = 60
INHERITED_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH")
"""Environment variables that processes inherit. Settings are not inherited."""

PYTHON_VARIABLE = "BENCHMARK_PYTHON"
"""Names the interpreter of another installation of BloxServer to measure, for example of an earlier version."""


class Process:
    """A running `bloxserver` command."""

    def __init__(
        self, directory: Path, settings: Mapping[str, str], *arguments: str, python: str | None = None
    ) -> None:
        """`python` is the interpreter; by default `BENCHMARK_PYTHON`, or this one."""
        environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
        self.log = directory / "processes.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [python or os.environ.get(PYTHON_VARIABLE, sys.executable), "-m", "bloxserver", *arguments],
                env=environment | {"LOG_LEVEL": "WARNING"} | dict(settings),
                cwd=directory,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float | None:
        """Return the CPU seconds that the process has used."""
        return cpu_time.process_seconds(self.pid)

    def require_running(self) -> None:
        """Raise `RuntimeError` with the end of the log if the process has exited."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the process exited: {self.log.read_text(encoding='utf-8', errors='replace')[-2000:]}")

    @property
    def exited(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()

    async def stop(self) -> None:
        """Send SIGTERM and wait; kill the process if it does not exit in time."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)


@asynccontextmanager
async def running(
    directory: Path, settings: Mapping[str, str], *arguments: str, python: str | None = None
) -> AsyncIterator[Process]:
    """Run a process during the block."""
    process = Process(directory, settings, *arguments, python=python)
    try:
        yield process
    finally:
        await process.stop()


@asynccontextmanager
async def serving(
    directory: Path, settings: Mapping[str, str], *arguments: str, python: str | None = None
) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """Run `bloxserver serve` and wait until it is ready. Yields the process and a client for it."""
    port = free_port()
    async with (
        running(
            directory, settings, "serve", "--host", "127.0.0.1", "--port", str(port), *arguments, python=python
        ) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        async with asyncio.timeout(READY_SECONDS):
            while not await _is_ready(client):
                process.require_running()
                await asyncio.sleep(READY_POLL_SECONDS)
        yield process, client


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
