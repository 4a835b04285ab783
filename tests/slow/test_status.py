"""`bloxserver status` in a separate process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bloxserver import __version__
from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.factories import create_execution, create_flow, create_user
from tests.processes import bloxserver


@pytest.mark.parametrize("waiting", [False, True])
async def test_the_exit_status_shows_a_problem(live_settings: Settings, live_database: Database, waiting: bool) -> None:
    if waiting:
        async with live_database.sessions() as session:
            await create_execution(session, await create_flow(session, await create_user(session)))
    printed = await asyncio.to_thread(bloxserver, "status", DATABASE_URL=live_settings.database_url)
    lines = printed.stdout.splitlines()
    assert (printed.returncode, printed.stderr, lines[0]) == (int(waiting), "", f"bloxserver {__version__}")
    assert lines[-1].startswith("problem    no live workers") == waiting


def test_a_schema_that_cannot_be_read_is_told(live_settings: Settings, tmp_path: Path) -> None:
    told = bloxserver("status", "--json", DATABASE_URL=live_settings.database_url)
    assert told.returncode == 1, told.stderr
    found = json.loads(told.stdout)
    assert found["database"]["schema"] == "missing"
    assert found["problems"] == ["the database's schema is missing: run `bloxserver migrate`"]


def test_a_database_that_is_away_is_told() -> None:
    told = bloxserver("status", DATABASE_URL="postgresql://user:s3cret@127.0.0.1:1/x")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("bloxserver: the database cannot be used")
    assert "s3cret" not in told.stderr
