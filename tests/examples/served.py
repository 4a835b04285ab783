"""Processes for tests: a server as `make serve` starts it, and the external services of the examples."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.examples.installation import EXAMPLES

READY_SECONDS = 60
QUICK = {"ENGINE_POLL_SECONDS": "0.02", "POLL_INTERVAL_SECONDS": "0.5"}
BLOXSERVER = Path(sys.executable).parent / "bloxserver"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def outside_settings(port: int, smtp_port: int) -> dict[str, str]:
    """Return the settings of examples/outside.env with other ports."""
    lines = (EXAMPLES / "outside.env").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    settings["LLM_BASE_URL"] = settings["LLM_BASE_URL"].replace("9000", str(port))
    return settings | {"SMTP_PORT": str(smtp_port)}


@contextmanager
def outside_world(directory: Path, port: int, smtp_port: int) -> Iterator[Path]:
    """Run examples/outside.py, and yield its log file."""
    ports = {"OUTSIDE_PORT": str(port), "OUTSIDE_SMTP_PORT": str(smtp_port)}
    log = directory / "outside.log"
    with _process([sys.executable, str(EXAMPLES / "outside.py")], directory, ports, log):
        _wait_for(f"http://127.0.0.1:{port}/hooks/ready")
        yield log


@contextmanager
def served(directory: Path, settings: Mapping[str, str]) -> Iterator[int]:
    """Run a development server with a new database, and yield its port."""
    port = free_port()
    command = [str(BLOXSERVER), "serve", "--host", "127.0.0.1", "--port", str(port)]
    database = {"DATABASE_URL": f"sqlite+aiosqlite:///{directory}/test.db"}
    with _process(command, directory, {**settings, **QUICK, **database}, directory / "serve.log"):
        _wait_for(f"http://127.0.0.1:{port}/health/ready")
        yield port


@contextmanager
def _process(command: list[str], directory: Path, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    with (
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen(
            command, cwd=directory, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            httpx.get(url)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
