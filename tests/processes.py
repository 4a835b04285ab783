"""Runs BloxServer in separate processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from bloxserver.settings import Settings


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Process:
    def __init__(self, settings: Settings, directory: Path, *arguments: str, **changes: str) -> None:
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {
            "DATABASE_URL": settings.database_url,
            "SSRF_ALLOW_CIDRS": "127.0.0.0/8",
            "HEARTBEAT_INTERVAL_SECONDS": "0.3",
            "HEARTBEAT_TIMEOUT_SECONDS": "1.5",
            "POLL_INTERVAL_SECONDS": "0.3",
            "SHUTDOWN_GRACE_SECONDS": "0",
        }
        environment |= changes
        self.log = directory / f"{'-'.join(arguments)}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bloxserver", *arguments], env=environment, cwd=directory, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the process to exit; returns its status."""
        return self._process.wait(30)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait for the end; returns the exit status."""
        self._process.send_signal(number)
        return self._process.wait(30)


async def wait_until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                if (await client.get("/health/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


def bloxserver(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-m", "bloxserver", *arguments]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, timeout=60, check=False, input=""
    )
