"""One server process for one SQLite file."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx

from bloxserver.settings import Settings
from tests.processes import Process, bloxserver, free_port, wait_until_ready


async def test_a_second_server_is_refused_and_other_commands_are_not(live_settings: Settings, tmp_path: Path) -> None:
    """On SQLite; on PostgreSQL there may be any number."""
    ports = [free_port(), free_port()]
    url = {"DATABASE_URL": live_settings.database_url}
    first = Process(live_settings, tmp_path, "serve", "--port", str(ports[0]))
    servers = [first]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}") as client:
            await wait_until_ready(client)
        if live_settings.uses_sqlite:
            refused = await asyncio.to_thread(bloxserver, "serve", "--no-worker", "--port", str(ports[1]), **url)
            assert refused.returncode == 1
            assert refused.stderr == (
                f"bloxserver: another server (process {first.pid}) uses the database of DATABASE_URL; "
                "SQLite supports one server\n"
            )
        for command in ("migrate", "prune"):
            assert (await asyncio.to_thread(bloxserver, command, **url)).returncode == 0
        if live_settings.uses_sqlite:
            servers.remove(first)
            first.end(signal.SIGKILL)
        servers.append(Process(live_settings, tmp_path, "serve", "--port", str(ports[1])))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[1]}") as client:
            await wait_until_ready(client)
            assert (await client.get("/health")).status_code == 200
    finally:
        for server in servers:
            server.end(signal.SIGKILL)
