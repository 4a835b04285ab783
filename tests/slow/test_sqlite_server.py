"""A server that uses SQLite: how long its threads wait for each other."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from bloxserver.models.sqlite_connection import SWITCH_INTERVAL_SECONDS

ROOT = Path(__file__).parents[2]
START = """
import asyncio, sys
from bloxserver.api.main import app

async def start():
    async with app.router.lifespan_context(app):
        print("interval", sys.getswitchinterval())

asyncio.run(start())
"""


async def test_server_shortens_the_switch_interval_of_its_threads(tmp_path: Path) -> None:
    environment = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/test.db", "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START, env=os.environ | environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    (interval,) = [line.split()[1] for line in out.decode().splitlines() if line.startswith("interval")]
    assert float(interval) == pytest.approx(SWITCH_INTERVAL_SECONDS)
